"""Extremes: no run or comparison calls that a result which is none."""

import itertools
import json

import pytest

from faults.campaign.children import apical_in, together

pytestmark = pytest.mark.faults

WORDS = {
    "train": ("train", "--rule", "fa"),
    "compare on": ("compare", "--rules", "fa", "bp", "--seeds", 2, "--replicas", "on", "--no-time-steps"),
    "compare off": ("compare", "--rules", "fa", "--seeds", 1, "--replicas", "off", "--no-time-steps"),
}
NET = """
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self, where):
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 10))
        self.where = where
        self[2].momentum = 0.0
        if where == "mean":
            self[2].running_mean.fill_(float("nan"))

    def forward(self, x):
        y = super().forward(x)
        return y * float("inf") if self.where == "eval" and not self.training else y


def mean():
    return Net("mean")


def evaluation():
    return Net("eval")
"""
EXTREMES = [
    ("--learning-rate", "1e38", "--batch", 1442),
    ("--learning-rate", "1e38"),
    ("--learning-rate", "1e20", "--activation", "relu"),
    ("--weight-decay", "1e10", "--activation", "identity"),
    ("--weight-decay", "1e30"),
    ("--optimizer", "SGD:momentum=1e10", "--activation", "relu"),
    ("--optimizer", "Adam:eps=0", "--learning-rate", "1e30"),
    ("--input-noise", "1e38"),
    ("--activation-noise", "1e38"),
    ("--loss", "squared-error", "--learning-rate", "1e6", "--activation", "identity"),
    ("--loss", "squared-error", "--learning-rate", "10", "--batch", 1442, "--activation", "identity", "--epochs", 9),
    ("--scheduler", "ExponentialLR:gamma=1e30", "--epochs", 3, "--activation", "relu"),
    ("--learning-rate", "1e-45"),
    ("--precision", "16-mixed", "--learning-rate", "1e4", "--activation", "relu"),
    ("--network", "net.py:mean"),
    ("--network", "net.py:evaluation"),
]


def fault(folder, child):
    """What is no result among what the command calls one."""
    if child.traceback:
        return child.traceback
    found = [json.loads(path.read_text()) for path in folder.rglob("result.json") if "together" not in path.parts]
    none = [one for one in found if one["test_loss"] is None]
    if none:
        return f"a result without a loss: test error {none[0]['test_error']}, status {child.code}"
    if child.code == 0 and not found:
        return f"status 0 without a result: {child.output}"
    return ""


@pytest.mark.parametrize("name", WORDS)
def test_no_result_is_none(tmp_path, figure, name):
    def start(number):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "net.py").write_text(NET)
        more = EXTREMES[number]
        plain = [] if "--network" in more else ["--network", "64-20-10"]
        plain += [] if "--epochs" in more else ["--epochs", 1]
        return apical_in(home, *WORDS[name], *plain, *more, "--folder", "run", out=home / "o", name=home / "run")

    wrong = []
    for child in together((lambda number=number: start(number) for number in range(len(EXTREMES))), 60):
        told = fault(child.name, child)
        wrong += [(EXTREMES[int(child.name.parent.name)], told)] if told else []
    figure(f"extremes, {name}", f"{len(EXTREMES) - len(wrong)} of {len(EXTREMES)}")
    assert not wrong, "\n".join(itertools.starmap("{}: {}".format, wrong))
