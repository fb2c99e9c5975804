"""Lengths on the data that the paper trains on."""

from __future__ import annotations

import torch

from apical.data import ImageData
from apical.data.images import Split
from apical.papers import experiments


def test_lengths_are_the_papers_on_mnist():
    blank = Split(torch.zeros(60_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(60_000, dtype=torch.int64))
    large = ImageData("mnist", blank, blank, 10, tuple(map(str, range(10))))
    steps = {
        name: one.steps(large if one.data else None)
        for name, one in experiments().items()
        if one.paper == "lansdell2020"
    }
    assert all(steps[f"lansdell2020/fig2{one}"] == {"iterations": 2_000_000} for one in ("", *"abcd"))
    assert all(
        steps[f"lansdell2020/{one}"] == {"iterations": 1_000_000} for one in ("table2a", "fig3b", "fig4", "fig4e")
    )
