"""The matrix law against the flow, and its drift against the order of Euler's method."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from apical.papers import find
from apical.papers.amit2019 import conservation


def test_two_layer_law_has_no_derivative_under_the_flow():
    draw = np.random.default_rng(1)
    W1, W2, R, T = (draw.normal(size=shape) for shape in ((6, 4), (3, 6), (6, 3), (3, 4)))
    epsilon, h = 0.5, 1e-5
    E = T - W2 @ W1
    moved = [
        conservation.conserved(
            torch.from_numpy(W1 + s * (R + epsilon * W2.T) @ E),
            torch.from_numpy(W2 + s * E @ W1.T),
            torch.from_numpy(R),
            epsilon,
        )
        for s in (h, -h)
    ]
    assert float((moved[0] - moved[1]).abs().max()) / (2 * h) < 1e-8


def test_drift_halves_with_the_step(run):
    one = find("amit2019/conservation")
    record = run("conservation", "eps=0.5", {"iterations": 60})
    drifts = [record.curves[f"drift, step / {h}"].values[:, -1] for h in conservation.HALVINGS]
    for coarse, fine in pairwise(drifts):
        assert coarse / fine == pytest.approx([2, 2], rel=0.05)
    (claim,) = one.outcome({"eps=0.5": record}).claims
    assert claim.holds
