"""The autoencoder against NumPy by its equations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from apical.papers.lansdell2020.common import Minibatches, pixels, seeded, training
from apical.papers.lansdell2020.fig3_table2a import TABLE2A, autoencoder
from apical.papers.lansdell2020.methods import METHODS
from apical.papers.lansdell2020.views import TABLE


def test_the_autoencoder_learns_by_sums_over_minibatches(task, data):
    rate, steps, seeds = METHODS["bp"].rate, 3, (0, 5)
    one = dataclasses.replace(TABLE2A, width=20)
    record = one.run(task("bp", seeds, {"iterations": steps}))
    x, x_test = (pixels(part).double().numpy() for part in (training(data), data.test))
    for number, seed in enumerate(seeds):
        P = [p.detach().double().numpy() for p in seeded(seed, lambda: autoencoder(784, 20)).parameters()]
        minibatches = Minibatches((seed,), len(x))
        for _ in range(steps):
            batch = x[minibatches.draw()[0].numpy()]
            activities, pre = forward(P, batch)
            delta = (activities[-1] - batch) * (pre[-1] > 0)
            for layer in (3, 2, 1, 0):
                below = delta @ P[2 * layer]
                P[2 * layer] = P[2 * layer] - rate * delta.T @ activities[layer]
                P[2 * layer + 1] = P[2 * layer + 1] - rate * delta.sum(0)
                delta = below * (1 if layer == 2 else 1 - activities[layer] ** 2)
        loss = 32 * np.mean(np.sum((forward(P, x_test)[0][-1] - x_test) ** 2, 1)) / 2
        assert record.curves["test loss"].y[number][-1] == pytest.approx(loss, rel=1e-4)
        shown = x[: len(x_test)]
        loss = 32 * np.mean(np.sum((forward(P, shown)[0][-1] - shown) ** 2, 1)) / 2
        assert record.curves["train loss"].y[number][-1] == pytest.approx(loss, rel=1e-4)


def forward(P, x):
    functions = (np.tanh, lambda a: a, np.tanh, lambda a: np.maximum(a, 0))
    activities, pre = [x], []
    for layer, f in enumerate(functions):
        pre.append(activities[-1] @ P[2 * layer].T + P[2 * layer + 1])
        activities.append(f(pre[-1]))
    return activities, pre


def test_the_autoencoder_starts_as_the_code_does():
    net = seeded(0, lambda: autoencoder(784, 200))
    assert [tuple(p.shape) for p in net.parameters()] == [
        (200, 784), (200,), (2, 200), (2,), (200, 2), (200,), (784, 200), (784,)
    ]  # fmt: skip
    parameters = [p.detach() for p in net.parameters()]
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        sd = (2 / weight.shape[1]) ** 0.5
        assert float(weight.abs().max()) <= 2 * sd
        assert float(weight.std()) == pytest.approx(
            0.88 * sd, rel=0.01 + 3 / weight.numel() ** 0.5
        )  # cut off at two sd
        assert torch.all(bias == 0.1)


def test_rates_for_sums_become_rates_for_means():
    assert TABLE2A.rule(METHODS["np"]).hyperparameters["rate"] == pytest.approx(8e-6 * 32)


def test_some_rows_are_as_wide_as_in_the_code(task):
    record = TABLE2A.run(task("matched, width 50", (0,), {"iterations": 1}))
    assert set(record.numbers) == {"minimum of test loss", "neighbours in the code of one class"}
    assert METHODS["matched, width 50"] == dataclasses.replace(METHODS["matched"], width=50)
    (row,) = (one for one in TABLE2A.outcome({"matched, width 50": record}).rows if one.published)
    assert row.published == TABLE["matched"]
