"""The nonlinear networks of figure 3d against NumPy, and its claims."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import apical
from apical.papers import Curve, Record, Task
from apical.papers.claims import judge
from apical.papers.lillicrap2016.fig3d import (
    ERROR,
    FIG3D,
    FIG3D_SWEEP,
    SIZES,
    SWEPT,
    Student,
    difference,
    network,
    teacher,
)
from apical.papers.lillicrap2016.online import Pairs, uniform
from papers.lillicrap2016.students import SEEDS, STEPS, TANH, by_hand, trained


@pytest.mark.parametrize("frozen", [(), ("0",)])
@pytest.mark.parametrize("name", ["shallow", "bp", "fa"])
@pytest.mark.parametrize("layers", [3, 4])
def test_the_deep_network_learns_by_the_equations(name, layers, frozen):
    pairs = Pairs(SEEDS, 30, teacher())
    rule = apical.rule(name, **({"init": uniform(0.7)} if name == "fa" else {}))
    before, after = trained(lambda seed: network(SIZES[layers], seed, 0.3), rule, pairs, frozen)
    for place, (start, found) in enumerate(zip(before, after, strict=True)):
        examples = [[t[place, 0].numpy().astype(float) for t in pairs(step)] for step in range(STEPS)]
        # Where nothing before a layer learns, no signal leaves it, and its feedback is dropped.
        filled = [[W, b, np.zeros_like(W) if B is None else B] for W, b, B in start]
        expected = by_hand(filled, name, examples, TANH, frozen)
        for (W, b, _), (ours, its, _) in zip(expected, found, strict=True):
            np.testing.assert_allclose(ours, W, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(its, b, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_the_network_it_says():
    x = torch.randn(7, 30)
    generators = [torch.Generator().manual_seed(seed) for seed in (2016, 2017, 2018, 2026, 2027, 2028)]
    shapes = [(20, 30), (10, 20), (10, 10), (20,), (10,), (10,)]
    *W, b0, b1, b2 = [
        torch.empty(shape).uniform_(-0.5, 0.5, generator=g).double().numpy()
        for shape, g in zip(shapes, generators, strict=True)
    ]
    h = np.tanh(np.tanh(x.double().numpy() @ W[0].T + b0) @ W[1].T + b1)
    np.testing.assert_allclose(teacher()(x).numpy(), h @ W[2].T + b2, rtol=1e-4, atol=1e-5)


def test_the_t_test_is_students():
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, 20), random.normal(1, 1, 20)
    pooled = (a.var(ddof=1) + b.var(ddof=1)) / 2
    t = (a.mean() - b.mean()) / np.sqrt(pooled * 2 / 20)
    assert difference(a, b) == pytest.approx(2 * stats.t.sf(abs(t), 38))
    assert np.isnan(difference(a[:1], b))


def test_what_the_paper_prints():
    assert SIZES == {3: (30, 20, 10), 4: (30, 20, 10, 10)}
    final = {name: Record(curves={ERROR: Curve([0], [[1.0], [1.1]])}) for name in FIG3D.conditions}
    printed = {row.label: row.published for row in FIG3D.outcome(final).rows}
    for rule, p in (("fa", 9e-13), ("bp", 3e-12)):
        published = printed[f"log10 of P, four layers against three, {rule}"]
        assert published.tag == "P"
        assert 10**published.value == pytest.approx(p)


def test_claims_can_fail():
    better = {name: np.array([1.0, 1.1]) / (100 if "4" in name else 1) for name in FIG3D.conditions}
    worse = {name: 1 / values for name, values in better.items()}
    assert all(c.holds for c in judge(FIG3D.statements, better))
    assert [c.holds for c in judge(FIG3D.statements, worse)[:2]] == [False, False]


def test_the_sweep_scales_inputs_and_rates(tmp_path):
    def moved(student):
        one = replace(FIG3D_SWEEP, students=(student,), examples=3)
        curve = one.run(Task(str(student), (0, 1), 1.0, {"examples": 3}, tmp_path / str(student))).curves[ERROR]
        return np.abs(np.diff(curve.values)).sum()

    assert len(set(FIG3D_SWEEP.conditions)) == len(SWEPT) == 8
    slow, quick, small = (moved(Student("bp", 3, spread=s, rate=r)) for s, r in ((1.0, 1e-4), (1.0, 1e-2), (0.1, 1e-2)))
    assert 10 * slow < quick
    assert small != quick
    records = {name: Record(curves={ERROR: Curve([0], [[2e-3]])}) for name in FIG3D_SWEEP.conditions}
    assert all(row.agrees for row in FIG3D_SWEEP.outcome(records).rows)
