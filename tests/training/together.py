"""Comparisons whose seeds are trained side by side: configs, and how two of them are compared."""

from pathlib import Path

import pytest
import torch

from apical.data import ImageData, Split
from apical.training import CompareConfig, RunFolder
from apical.training import checkpoint as checkpoints
from processes import started
from training.runs import DIGITS

FEW = ImageData(
    "few",
    Split(DIGITS.train.images[:330], DIGITS.train.labels[:330]),
    Split(DIGITS.test.images[:100], DIGITS.test.labels[:100]),
    10,
    DIGITS.class_names,
)


RULES = ("bp", "fa", "dfa", "kp", "usf", "shallow", "urfb:epsilon=0.5", "wm", "brsf", "kp-direct")


BY_LOSSES = ("np", "sg", "reinforce")
"""They divide differences of losses by the noise, and so rounding; with 64-true that of the float32 outputs Fabric hands back."""


SHORT = CompareConfig(rules=("kp", "dfa"), seeds=3, epochs=2, network="64-20-10", checkpoint_every=7, replicas="on")


def last(folder):
    return checkpoints.load(Path(folder) / "checkpoint" / "last.ckpt")


def flat(value, path=()):
    """Every tensor and number of a nested state, by its place."""
    if isinstance(value, dict):
        return {place: one for key, inner in value.items() for place, one in flat(inner, (*path, key)).items()}
    if isinstance(value, list | tuple):
        return {place: one for key, inner in enumerate(value) for place, one in flat(inner, (*path, key)).items()}
    return {path: value}


def close(mine, its, tolerance):
    """States are alike: numbers to `tolerance`, everything else exactly."""
    mine, its = flat(mine), flat(its)
    assert mine.keys() == its.keys()
    for place, one in mine.items():
        if {"seconds", "images_per_second"} & set(place):
            continue
        if torch.is_tensor(one) and one.is_floating_point():
            torch.testing.assert_close(one, its[place], rtol=tolerance, atol=tolerance)
        elif torch.is_tensor(one):
            assert torch.equal(one, its[place]), place
        elif isinstance(one, float):
            assert one == pytest.approx(its[place], rel=tolerance, abs=tolerance), place
        else:
            assert one == its[place], place


def identical(mine, its):
    mine, its = flat(mine), flat(its)
    assert mine.keys() == its.keys()
    for place, one in mine.items():
        if not {"seconds", "step_ms", "images_per_second"} & set(place):
            assert torch.equal(one, its[place]) if torch.is_tensor(one) else one == its[place], place


def told(run):
    """A run's metrics and result."""
    return {"metrics": run.metrics.read(), **(run.result or {}), "step_ms": 0, "seconds": 0}


def compared(mine, its):
    runs = sorted(path.relative_to(mine) for path in mine.glob("runs/*"))
    assert runs == sorted(path.relative_to(its) for path in its.glob("runs/*"))
    for run in runs:
        identical(last(mine / run), last(its / run))
        identical(told(RunFolder(mine / run)), told(RunFolder(its / run)))


def start(folder, *more):
    options = ["--rules", "kp", "usf", "--seeds", "3", "--network", "64-30-10", "--no-time-steps"]
    return started(
        "compare", *options, "--checkpoint-every", "7", "--align-every", "500", "--folder", str(folder), *more
    )


def watch(step, steps, newest):
    assert newest["test_error"] >= 0
