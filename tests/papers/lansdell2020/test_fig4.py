"""Figure 4 against ridge regression in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apical.networks import lansdell2020_mlp
from apical.papers import Curve, Record, find
from apical.papers.lansdell2020 import accumulate
from apical.papers.lansdell2020.common import pixels, seeded, training
from apical.papers.lansdell2020.fig4 import FIG4


def test_ridge_sums_of_growing_batches_are_those_of_the_equations(task, data):
    record = FIG4.run(task("c = 0", (3,), {"iterations": 400}))
    net = seeded(3, lambda: lansdell2020_mlp(784, 10))
    W = [p.detach().double().numpy() for p in net.parameters()]
    part = training(data)
    x, y = pixels(part).double().numpy(), np.eye(10)[part.labels]
    stream = torch.Generator().manual_seed(3)
    index = torch.cat([torch.randint(len(x), (rows,), generator=stream) for rows in accumulate.batches(400 * 32)])
    h = x[index]
    for weight, bias in zip(W[0:4:2], W[1:4:2], strict=True):
        h = 1 / (1 + np.exp(-(h @ weight.T + bias)))
    e = h @ W[4].T + W[5] - y[index]
    B = np.linalg.solve(0.1 * np.eye(10) + e.T @ e, e.T @ (e @ W[4]))  # eq. 18, on the true gradient e W
    error = np.linalg.norm(W[4] - B) / np.linalg.norm(W[4])
    assert record.curves["relative error, layer 2"].last[0] == pytest.approx(error, rel=2e-2)
    assert record.curves["relative error, layer 2"].x[-1] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("draws", "lower", "holds"),
    [
        ((0.004, 0.005), 0.6, True),
        ((0.02, 0.021), 0.6, False),
        ((0.004, 0.014), 0.6, None),
        ((0.004, 0.005), 0.04, False),
    ],
)
def test_what_draws_scatter_around_is_undecided(draws, lower, holds):
    curves = {f"{name}, layer {k}": Curve([1], [[v] for v in (draws if k == 2 else (lower, lower))])
              for name in ("relative error", "angle", "sign congruence") for k in (1, 2)}  # fmt: skip
    claim, *_ = find("lansdell2020/fig4a").outcome({"c = 0.01": Record(curves=curves)}).claims
    assert claim.holds is holds
