"""Settings of the released runs beside those of the release and of the paper."""

from __future__ import annotations

import pytest

import apical
from apical.papers.akrout2019.settings import CONDITIONS, settings


def test_every_condition_has_a_setting():
    assert tuple(map(str, CONDITIONS)) == tuple(settings(128))


def test_released_mirror_is_uniform_noise_summed_over_the_batch():
    mirror = settings(128)["wm"].rule.plasticity
    assert isinstance(mirror, apical.Mirror)
    assert mirror.noise * 3**0.5 == pytest.approx(0.05)  # Uniform on +-0.05.
    assert mirror.rate / 128 == pytest.approx(0.01)  # Apical averages over the batch, the release sums.
    assert (mirror.decay, mirror.baseline, mirror.bias_blocking) == (0, 0, False)
    assert settings(128)["wm"].rate == 0.05


def test_the_papers_mirror_has_its_own_batch_and_two_epochs():
    chosen = settings(128)["wm, paper"]
    assert (vars(chosen.rule.plasticity)["batch"], chosen.mirrored) == (2048, 2)
