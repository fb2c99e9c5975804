"""The theorems' limits and rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import apical
from apical.papers import find
from apical.papers.lansdell2020.theorems import SETTINGS, exponent
from apical.papers.record import Curve
from apical.papers.reproduce import reproduce


@pytest.mark.parametrize("name", SETTINGS)
def test_errors_of_a_theorem_are_zero_where_its_limit_is_reached(name):
    setting = SETTINGS[name]
    net = setting.network()
    learner = apical.attach(
        net, apical.rule(setting.rule, solver="ridge"), example_input=torch.zeros(2, setting.sizes[0])
    )
    W = [net[i].weight.detach() for i in range(0, len(net), 2)]
    assert all(error > 0.5 for (error,) in setting.errors(learner, setting.layers).values())
    for layer in setting.layers:
        limit = W[layer - 1]
        if setting.rule == "np-direct" and layer == 2:
            limit = W[2] @ W[1]
        learner.synapses[str(2 * layer - 2)].feedback = limit
    assert all(error < 1e-6 for (error,) in setting.errors(learner, setting.layers).values())


def test_the_theorems_hold(tmp_path):
    outcome = reproduce(find("lansdell2020/theorems"), tmp_path / "run", seeds=2, scale=0.01)
    assert [claim["holds"] for claim in outcome["shows"]["claims"]] == [True] * 4


def test_an_exponent_is_that_of_a_power():
    x = np.logspace(1, 6, 30)
    assert exponent(Curve(x.tolist(), [(3 * x**-0.5).tolist(), (2 * x**-0.5).tolist()])) == pytest.approx(-0.5)
    assert exponent(Curve([1.0], [[2.0]])) is None
