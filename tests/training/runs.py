"""Runs for the tests of the training engine: data, short configs, and what their folders hold."""

from pathlib import Path

import torch

from apical import data as images
from apical.data import ImageData, Split
from apical.training import (
    CompareConfig,
    TrainConfig,
)
from apical.training import checkpoint as checkpoints
from processes import started

DIGITS = images.load()
TIMELESS = {"seconds": 0, "images_per_second": 0}
"""In the place of what no two runs measure alike."""


SHORT = TrainConfig(epochs=2, network="64-20-10", rule="kp", checkpoint_every=5)


def small(n=64):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, 4, 4), generator=g, dtype=torch.uint8)
    split = Split(pixels, torch.randint(3, (n,), generator=g))
    return ImageData("small", split, split, 3, ("a", "b", "c"))


def weights(folder):
    return checkpoints.load(Path(folder) / "checkpoint" / "last.ckpt")["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def start(folder, *more):
    rule = ["--rule", "kp", "--network", "64-30-10", "--epochs", "12", "--checkpoint-every", "7"]
    return started("train", *rule, "--folder", str(folder), *more)


PAIR = CompareConfig(rules=("bp", "fa", "usf"), seeds=2, epochs=1, network="64-20-10")
