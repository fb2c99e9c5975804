"""The linear network of section 5, followed by either method, against the equations in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from apical.papers import find
from apical.papers.amit2019.fig12 import CONDITIONS
from apical.papers.amit2019.linear_network import LAYERS, drawn
from apical.papers.record import Curve, Record


@pytest.mark.parametrize("condition", ["bp", "eps=0", "eps=0.5", "eps=1, sd 0.2"])
def test_linear_network_makes_euler_steps_of_the_system(condition, run):
    setting = CONDITIONS[condition]
    found = run("fig12", condition, {"iterations": 30}, (3, 4))
    for index, seed in enumerate((3, 4)):
        start = drawn(setting.epsilon, setting.method.sd, seed)
        W = [w.numpy() for w in start.weights]
        R0 = [r.numpy().T for r in start.feedback]  # The paper's R_l is [in, out].
        T = start.target.numpy().T
        for _ in range(30):
            R = [w.T for w in W] if setting.epsilon is None else [r + setting.epsilon * w.T for r, w in zip(R0, W)]  # noqa: B905
            E = T - W[2] @ W[1] @ W[0]
            step = [R[1] @ R[2] @ E, R[2] @ E @ W[0].T, E @ W[0].T @ W[1].T]
            W = [w + setting.method.step * d for w, d in zip(W, step, strict=True)]
        error = np.trace((T - W[2] @ W[1] @ W[0]).T @ (T - W[2] @ W[1] @ W[0]))
        assert found.curves["squared error"].values[index, -1] == pytest.approx(error, rel=1e-9)
        if setting.epsilon is not None:
            for layer, w, r in zip(LAYERS, W, R0, strict=True):
                expected = np.corrcoef(w.ravel(), (r + setting.epsilon * w.T).T.ravel())[0, 1]
                assert found.curves[layer].values[index, -1] == pytest.approx(expected, abs=1e-9)


def test_differential_equation_is_solved(run):
    name, iterations = "eps=0.5, ODE", 60
    found = run("fig12", name, {"iterations": iterations}, (2,))
    setting = CONDITIONS[name]
    start = drawn(setting.epsilon, setting.method.sd, 2)
    W, R0, T = [w.numpy() for w in start.weights], [r.numpy() for r in start.feedback], start.target.numpy().T

    def change(W):
        R = [(r + 0.5 * w).T for r, w in zip(R0, W, strict=True)]
        E = T - W[2] @ W[1] @ W[0]
        return [R[1] @ R[2] @ E, R[2] @ E @ W[0].T, E @ W[0].T @ W[1].T]

    def along(W, k, h):
        return [w + h * d for w, d in zip(W, k, strict=True)]

    h = setting.method.step
    for _ in range(iterations):  # Runge and Kutta's fourth-order steps.
        k1 = change(W)
        k2 = change(along(W, k1, h / 2))
        k3 = change(along(W, k2, h / 2))
        k4 = change(along(W, k3, h))
        W = [w + h / 6 * (a + 2 * b + 2 * c + d) for w, a, b, c, d in zip(W, k1, k2, k3, k4, strict=True)]
    error = ((T - W[2] @ W[1] @ W[0]) ** 2).sum()
    assert found.curves["squared error"].values[0, -1] == pytest.approx(error, rel=1e-6)
    assert found.curves["top layer"].values[0, -1] == pytest.approx(
        np.corrcoef(W[2].ravel(), (R0[2] + 0.5 * W[2]).ravel())[0, 1], abs=1e-6
    )


def test_claims_of_fig12_can_fail():
    x = [0.0, 1.0, 2.0]

    def made(error: float, correlations: tuple[float, float, float]) -> Record:
        curves = {"squared error": Curve(x, [[1.0, error, error**2]])}
        curves |= {layer: Curve(x, [[0.0, c, c]]) for layer, c in zip(LAYERS, correlations, strict=True)}
        return Record(curves=curves, seeds=[0])

    slow, fast = made(1e-4, (0.1, 0.3, 0.95)), made(1e-6, (0.6, 0.5, 0.99))
    one = find("amit2019/fig12")
    good = one.outcome({"eps=0": slow, "eps=1": fast})
    assert all(claim.holds for claim in good.claims)
    assert len(good.claims) == 6
    bad = one.outcome({"eps=0": fast, "eps=1": slow})
    assert [claim.holds for claim in bad.claims].count(False) == 3
    assert one.outcome({}).claims == []
