"""The linear system of section 5 and the circuits of Appendix 1, against the equations in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from apical.papers import find
from apical.papers.amit2019 import circuits, conservation
from apical.papers.amit2019 import fig12 as linear
from apical.papers.amit2019 import theorems as scalar
from apical.papers.amit2019.linear_network import drawn, flow
from apical.papers.experiment import Task
from apical.papers.record import Curve, Record


def run(name: str, condition: str, lengths: dict[str, int], folder, seeds=(0, 1)) -> Record:
    return find(f"amit2019/{name}").run(Task(condition, seeds, 1.0, lengths, folder))


@pytest.mark.parametrize("condition", ["bp", "eps=0", "eps=0.5", "eps=1, sd 0.2"])
def test_linear_network_makes_euler_steps_of_the_system(condition, tmp_path):
    setting = linear.CONDITIONS[condition]
    found = run("fig12", condition, {"iterations": 30}, tmp_path, (3, 4))
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
            for layer, w, r in zip(linear.LAYERS, W, R0, strict=True):
                expected = np.corrcoef(w.ravel(), (r + setting.epsilon * w.T).T.ravel())[0, 1]
                assert found.curves[layer].values[index, -1] == pytest.approx(expected, abs=1e-9)


def test_flow_of_the_linear_network_is_the_gradient_where_feedback_is_transposed():
    draw = np.random.default_rng(0)
    W = [draw.normal(size=shape) for shape in ((5, 3), (4, 5), (2, 4))]
    T = draw.normal(size=(2, 3))

    def loss(which, shift):
        moved = [w + shift if i == which else w for i, w in enumerate(W)]
        return ((T - moved[2] @ moved[1] @ moved[0]) ** 2).sum() / 2

    for which, d in enumerate(flow(W, None, T, 0.0)):
        bump = np.zeros_like(d)
        bump[1, 2] = 1e-6
        assert -(loss(which, bump) - loss(which, -bump)) / 2e-6 == pytest.approx(d[1, 2], rel=1e-6)


def test_differential_equation_is_solved(tmp_path):
    name, iterations = "eps=0.5, ODE", 60
    found = run("fig12", name, {"iterations": iterations}, tmp_path, (2,))
    setting = linear.CONDITIONS[name]
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
        curves |= {layer: Curve(x, [[0.0, c, c]]) for layer, c in zip(linear.LAYERS, correlations, strict=True)}
        return Record(curves=curves, seeds=[0])

    slow, fast = made(1e-4, (0.1, 0.3, 0.95)), made(1e-6, (0.6, 0.5, 0.99))
    one = find("amit2019/fig12")
    good = one.outcome({"eps=0": slow, "eps=1": fast})
    assert all(claim.holds for claim in good.claims)
    assert len(good.claims) == 6
    bad = one.outcome({"eps=0": fast, "eps=1": slow})
    assert [claim.holds for claim in bad.claims].count(False) == 3
    assert one.outcome({}).claims == []


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_scalar_system_conserves_eq_16_and_descends_by_eq_17(epsilon):
    back, target = np.array([[0.0], [0.08], [0.05]]), np.array([0.8])
    solved = solve_ivp(
        lambda t, v: scalar.change(v[:, None], back, target, epsilon)[:, 0],
        (0, 150),
        np.zeros(3),
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
        dense_output=True,
    )
    for t in (20.0, 80.0, 100.0, 140.0):
        values = solved.sol(t)[:, None]
        assert abs(scalar.conserved(values, back, epsilon)).max() < 1e-10
        (l1, l2, l3), e = values[:, 0], float(target[0] - values.prod())
        # k = 3, written out in the paper.
        closed = (epsilon / 2 * l2**2 + 1.5 * l1**2) * (epsilon / 2 * l3**2 + l2**2 / 2) + l1**2 * l2**2
        assert scalar.decay(values, epsilon)[0] == pytest.approx(closed, rel=1e-12)
        later, before = (float(target[0] - solved.sol(t + s).prod()) for s in (1e-3, -1e-3))
        assert (later**2 - before**2) / 2e-3 == pytest.approx(-2 * e**2 * closed, rel=1e-4, abs=1e-18)


def test_rate_of_two_layers_is_as_written_out():
    values = np.array([[0.7], [0.9]])
    assert scalar.decay(values, 0.5)[0] == pytest.approx(1.5 * 0.49 + 0.25 * 0.81)


@pytest.mark.parametrize("name", ["theorem1", "theorem2", "fig12-scalar"])
def test_draws_meet_the_conditions_of_the_theorems(name):
    one = find(f"amit2019/{name}")
    assert isinstance(one, scalar.Decoupled)
    target, back = one.drawn(range(50))
    assert (target <= 1).all()
    assert (back[1:].max(0) < 0.3 * target).all()
    if one.layers == 3:
        for epsilon in scalar.EPSILONS.values():
            assert (back[1] > (1 + np.sqrt(1 + epsilon)) / 2 * back[2]).all()


def test_theorem_1_holds_and_its_claims_can_fail(tmp_path):
    one = find("amit2019/theorem1")
    records = {c: run("theorem1", c, {"steps": 5000}, tmp_path, range(4)) for c in one.conditions}
    assert [claim.holds for claim in one.outcome(records).claims] == [True, True, True]
    swapped = {a: records[b] for a, b in zip(one.conditions, reversed(one.conditions), strict=True)}
    assert [claim.holds for claim in one.outcome(swapped).claims] == [False, False, True]
    short = {"eps=0": run("theorem1", "eps=0", {"steps": 50}, tmp_path, (0,))}
    (claim,) = one.outcome(short).claims
    assert not claim.holds


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


def test_drift_halves_with_the_step(tmp_path):
    one = find("amit2019/conservation")
    record = run("conservation", "eps=0.5", {"iterations": 60}, tmp_path)
    drifts = [record.curves[f"drift, step / {h}"].values[:, -1] for h in conservation.HALVINGS]
    for coarse, fine in pairwise(drifts):
        assert coarse / fine == pytest.approx([2, 2], rel=0.05)
    (claim,) = one.outcome({"eps=0.5": record}).claims
    assert claim.holds


def test_units_of_the_error_circuit_follow_the_tables():
    M, S, mu, eps = circuits.BOUND, circuits.THRESHOLD, circuits.MU, circuits.EPSILON
    H = np.array([2 * M + S + 0.1, 2 * M + S, M + 0.1, 0.0, -M - 0.1, -2 * M - S, -2 * M - S - 0.1])
    np.testing.assert_allclose(circuits.error_unit(H), [1 + eps, 1, 1, 0, -mu, -mu, -mu - eps])
    np.testing.assert_allclose(circuits.stop_unit(np.array([1 + eps, 1, 0, -mu, -mu - eps])), [1, 0, 0, 0, -1])


@pytest.mark.parametrize(
    ("s", "h", "expected"),
    [
        (1, 0.5, [1, 1, 1, 1]),
        (1, 1.0, [1, 1, 1, 1]),
        (1, 1.5, [1 + circuits.EPSILON, 0, 1 + circuits.EPSILON, 0]),
        (-1, -0.5, [-circuits.MU] * 4),
        (-1, -1.5, [-circuits.MU - circuits.EPSILON, 0, -circuits.MU - circuits.EPSILON, 0]),
    ],
)
def test_error_circuit_stays_or_cycles(s, h, expected):
    np.testing.assert_allclose(circuits.output_error(np.array([h]), s, 4)[:, 0], expected)


def test_shut_off_circuit():
    K = circuits.K
    delta = np.array([-K + 0.01, -0.3, 0.0, 0.3, K - 0.01])
    for x in (1.0, -1.0):
        np.testing.assert_array_equal(circuits.shut_off(np.array(x), delta), 0)
    for x in (0.99, -0.99, 0.0):
        np.testing.assert_array_equal(circuits.shut_off(np.array(x), delta), delta)
    assert circuits.shut_off(np.array(1.0), np.array(K)) == -K  # Why |delta| has to be smaller.
