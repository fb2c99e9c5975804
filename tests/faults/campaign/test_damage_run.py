"""Every file of a run with one bit changed: the run ends as it would have, or is refused; never something between."""

import shutil

import numpy as np
import pytest

from faults.campaign.children import apical_in, fork, together
from faults.campaign.folders import differences, flipped, held

pytestmark = pytest.mark.faults

WORDS = ("train", "--rule", "kp", "--network", "64-8-10", "--epochs", 3, "--checkpoint-every", 10, "--align-every", 30)
FLIPS = 100


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, and the same one stopped in the middle."""
    home = tmp_path_factory.mktemp("runs")
    whole = apical_in(home, *WORDS, "--folder", "whole", out=home / "o").wait()
    assert whole.code == 0, whole.errors

    def stop():
        from apical.training import TrainConfig, train

        def watcher(step, steps, newest):
            if step == 45:
                raise SystemExit(3)

        config = TrainConfig(rule="kp", network="64-8-10", epochs=3, checkpoint_every=10, align_every=30)
        train(config, home / "cut", watcher=watcher)

    assert fork(stop, home / "o2", cwd=home).wait().code == 3
    again = apical_in(home, "train", "--resume", "whole", out=home / "o").wait()
    return home, again.output


def resumed(home, source, file, number, tmp_path):
    folder = tmp_path / f"run{number}"
    shutil.copytree(home / source, folder)
    flipped(folder / file, np.random.default_rng(number))
    return apical_in(tmp_path, "train", "--resume", folder, out=tmp_path / f"o{number}", name=folder)


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "checkpoint/last.ckpt"])
def test_an_unfinished_run(runs, tmp_path, figure, file):
    home, _ = runs
    whole, right, refused, wrong = held(home / "whole"), 0, 0, []
    starts = [lambda number=number: resumed(home, "cut", file, number, tmp_path) for number in range(FLIPS)]
    for child in together(starts):
        if child.code == 0:
            other = differences(whole, held(child.name))
            right += not other
            wrong += [(child.name.name, other)] if other else []
        else:
            refused += not child.traceback
            wrong += [child.traceback] if child.traceback else []
        shutil.rmtree(child.name)
    figure(f"{file} of an unfinished run, one bit changed", f"{right} right, {refused} refused, {len(wrong)} wrong")
    assert not wrong


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "checkpoint/last.ckpt", "result.json"])
def test_a_finished_run(runs, tmp_path, figure, file):
    home, output = runs
    right, refused, wrong = 0, 0, []
    starts = [lambda number=number: resumed(home, "whole", file, number, tmp_path) for number in range(FLIPS)]
    for child in together(starts):
        same = child.output.replace(str(child.name), "whole") == output
        if child.code == 0 and not child.traceback:
            right += same
            wrong += [] if same else [child.output]
        else:
            refused += not child.traceback
            wrong += [child.traceback] if child.traceback else []
        shutil.rmtree(child.name)
    figure(f"{file} of a finished run, one bit changed", f"{right} right, {refused} refused, {len(wrong)} wrong")
    assert not wrong
