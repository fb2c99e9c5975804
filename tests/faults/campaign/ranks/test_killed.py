"""A process of several is killed: the other says why it stops, and all resume to what was never stopped, noise or not."""

import time

import numpy as np
import pytest

from faults.campaign.folders import differences, held
from faults.campaign.ranks.processes import on_ranks

pytestmark = pytest.mark.faults

NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Dropout(0.3), nn.Linear(20, 10))
"""
CASES = {
    "fa": (),
    "np": (),
    "wm": (),
    "fa, input noise": ("--input-noise", 0.3),
    "kp, dropout": ("--network", "net.py:net"),
    "dfa, noise and dropout": ("--network", "net.py:net", "--input-noise", 0.3),
}


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed(tmp_path, figure, case, killed):
    (tmp_path / "net.py").write_text(NET)
    words = ["train", "--rule", case.partition(",")[0], "--epochs", 6, "--checkpoint-every", 7, "--align-every", 50]
    words += ["--accelerator", "cpu", *CASES[case], *(() if "--network" in CASES[case] else ("--network", "64-20-10"))]
    for child in on_ranks(tmp_path, *words, "--folder", "whole"):
        assert child.wait().code == 0, child.errors
    children = on_ranks(tmp_path, *words, "--folder", "cut")
    until = time.monotonic() + 120
    while not (tmp_path / "cut" / "checkpoint" / "last.ckpt").exists():
        assert time.monotonic() < until, "no checkpoint within two minutes"
        time.sleep(0.005)
    time.sleep(np.random.default_rng(len(case) + killed).uniform(0, 0.15))
    children[killed].send(9)
    children[killed].wait()
    survivor = children[1 - killed]
    before = time.monotonic()
    survivor.wait(120)
    took = time.monotonic() - before
    assert survivor.code == 1, (survivor.code, survivor.errors)
    assert not survivor.traceback, survivor.errors
    assert "another one has ended" in survivor.errors
    assert "--resume" in survivor.errors
    for child in on_ranks(tmp_path, "train", "--resume", "cut"):
        assert child.wait().code == 0, child.errors
    other = differences(held(tmp_path / "whole"), held(tmp_path / "cut"))
    figure(
        f"rank {killed} killed, {case}", f"survivor ended in {took:.1f} s; {'differs' if other else 'bit-identical'}"
    )
    assert not other
