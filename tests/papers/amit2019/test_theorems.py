"""The decoupled system against the equations and an independent solver."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from apical.papers import find
from apical.papers.amit2019 import decoupled as scalar
from apical.papers.amit2019.theorems import Decoupled


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
    assert isinstance(one, Decoupled)
    target, back = one.drawn(range(50))
    assert (target <= 1).all()
    assert (back[1:].max(0) < 0.3 * target).all()
    if one.layers == 3:
        for epsilon in scalar.EPSILONS.values():
            assert (back[1] > (1 + np.sqrt(1 + epsilon)) / 2 * back[2]).all()


def test_theorem_1_holds_and_its_claims_can_fail(run):
    one = find("amit2019/theorem1")
    records = {c: run("theorem1", c, {"steps": 1000}, range(4), step=0.1) for c in one.conditions}
    assert [claim.holds for claim in one.outcome(records).claims] == [True, True, True]
    swapped = {a: records[b] for a, b in zip(one.conditions, reversed(one.conditions), strict=True)}
    assert [claim.holds for claim in one.outcome(swapped).claims] == [False, False, True]
    # Nothing says of two layers that the last one's number grows.
    assert not any("as printed" in claim.text for claim in one.outcome(records).claims)
    short = {"eps=0": run("theorem1", "eps=0", {"steps": 10}, (0,), step=0.1)}
    (claim,) = one.outcome(short).claims
    assert not claim.holds


def test_of_theorem_2_all_holds_but_that_the_last_number_grows(run):
    one = find("amit2019/theorem2")
    records = {c: run("theorem2", c, {"steps": 2000}, range(2), step=0.5) for c in one.conditions}
    claims = {claim.text.partition(":")[0] + claim.kind: claim for claim in one.outcome(records).claims}
    assert claims["Theorem 2derived"].holds
    printed = claims["Theorem 2 as printedpaper"]
    assert not printed.holds
    assert "λ1: yes; λ2: yes; λ3: no; λ3 falls" in printed.evidence


def test_laws_of_the_scalar_system_hold_and_can_fail(run):
    one = find("amit2019/fig12-scalar")
    records = {c: run("fig12-scalar", c, {"steps": 3000}, range(2), step=0.05) for c in one.conditions}
    assert [claim.holds for claim in one.outcome(records).claims] == [True] * 4
    coarse = {c: run("fig12-scalar", c, {"steps": 40}, range(2), step=2.0) for c in one.conditions}
    assert [claim.holds for claim in one.outcome(coarse).claims] != [True] * 4
