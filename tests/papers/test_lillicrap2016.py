"""lillicrap2016: what the networks learn against NumPy by the paper's equations, and what the descriptions print."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

import apical
from apical.papers import Curve, Record, Task
from apical.papers.lillicrap2016 import EXPERIMENTS
from apical.papers.lillicrap2016 import fig2 as linear
from apical.papers.lillicrap2016 import fig3d as depth
from apical.papers.lillicrap2016 import fig5 as quadratic
from apical.papers.lillicrap2016 import scale_sweep as scales
from apical.papers.lillicrap2016.online import Pairs, Students, normal, normalized_squared_error, uniform

SEEDS, RATE, STEPS = (3, 8), 0.05, 4


def arrays(students, name):
    """The networks' weights, biases and feedback at a layer, as NumPy: [(W, b, B)] by network."""
    synapse, n = students.learner.synapses[name], students.n
    parts = [synapse.weight, synapse.bias, synapse.feedback]
    own = [[None] * n if p is None else [t.detach().numpy().astype(float).copy() for t in p.chunk(n)] for p in parts]
    return list(zip(*own, strict=True))


def by_hand(layers, rule, examples, f, frozen=()):
    """Online descent on (1/2) e^T e. layers: [W, b, B]; f: (activation, derivative by the activity), linear on top."""
    act, slope = f
    for x, y in examples:
        h = [x]
        for place, (W, b, _) in enumerate(layers):
            a = W @ h[-1] + (0 if b is None else b)
            h.append(a if place == len(layers) - 1 else act(a))
        delta = h[-1] - y
        for place in reversed(range(len(layers))):
            W, b, B = layers[place]
            if rule == "shallow" and place < len(layers) - 1:
                break
            back = None if place == 0 else ({"fa": B, "bp": W}.get(rule, W).T @ delta) * slope(h[place])
            if str(2 * place if f is TANH else place) not in frozen:
                layers[place][0] = W - RATE * np.outer(delta, h[place])
                if b is not None:
                    layers[place][1] = b - RATE * delta
            delta = back
    return layers


IDENTITY = (lambda a: a, lambda h: np.ones_like(h))
TANH = (np.tanh, lambda h: 1 - h**2)


def trained(build, rule, pairs, frozen=()):
    """Students before and after, and what the equations make of the former."""
    students = Students(build, rule, SEEDS, inputs=pairs.inputs, rate=RATE, frozen=frozen)
    names = list(students.learner.synapses)
    before = [[list(arrays(students, name)[place]) for name in names] for place in range(students.n)]
    for step in range(STEPS):
        students.learn(*pairs(step))
    after = [[list(arrays(students, name)[place]) for name in names] for place in range(students.n)]
    return before, after


@pytest.mark.parametrize("name", ["shallow", "bp", "fa"])
def test_the_linear_network_learns_by_the_equations(name):
    T = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(SEEDS, 30, lambda x: x @ T.t())
    rule = apical.rule(name, **({"init": uniform(0.5)} if name == "fa" else {}))
    before, after = trained(lambda seed: linear.network(seed, 0.1), rule, pairs)
    for place, (start, found) in enumerate(zip(before, after, strict=True)):
        examples = [[t[place, 0].numpy().astype(float) for t in pairs(step)] for step in range(STEPS)]
        expected = by_hand(start, name, examples, IDENTITY)
        for (W, _, _), (ours, _, _) in zip(expected, found, strict=True):
            np.testing.assert_allclose(ours, W, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [(), ("0",)])
@pytest.mark.parametrize("name", ["shallow", "bp", "fa"])
@pytest.mark.parametrize("layers", [3, 4])
def test_the_deep_network_learns_by_the_equations(name, layers, frozen):
    pairs = Pairs(SEEDS, 30, depth.teacher())
    rule = apical.rule(name, **({"init": uniform(0.7)} if name == "fa" else {}))
    before, after = trained(lambda seed: depth.network(depth.SIZES[layers], seed, 0.3), rule, pairs, frozen)
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
    np.testing.assert_allclose(depth.teacher()(x).numpy(), h @ W[2].T + b2, rtol=1e-4, atol=1e-5)


def test_the_quadratic_target_has_a_matrix_for_each_output():
    x = quadratic.box((300, 20), torch.Generator().manual_seed(0))
    Q = torch.empty(20, 20, 20).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2016)).double().numpy()
    y = quadratic.quadratic()(x).numpy()
    for row in (0, 17):
        for k in (0, 19):
            one = x[row].double().numpy()
            assert y[row, k] == pytest.approx(sum(one[i] * Q[k, i] @ one for i in range(20)), rel=1e-4, abs=1e-4)
    assert 1.9 < float(x.abs().max()) <= 2
    assert 7 < float(y.std()) < 8.6  # 7.8 by algebra, reference 3.6


def test_pairs_do_not_depend_on_who_else_is_there_or_where_one_starts():
    alone, together = (Pairs(seeds, 5, lambda x: x[:, :2] * 3, normal) for seeds in ((8,), (3, 8)))
    for step in (0, 249, 250, 1000):
        for mine, its in zip(alone(step), together(step), strict=True):
            assert mine.shape[:2] == (1, 1)
            torch.testing.assert_close(mine[0], its[1], rtol=0, atol=0)
    x, y = Pairs((8,), 5, lambda x: x[:, :2] * 3)(600)
    torch.testing.assert_close(x, together(600)[0][1:], rtol=0, atol=0)
    torch.testing.assert_close(y, x[..., :2] * 3)
    held, _ = alone.held_out(2000)
    assert abs(float(held.std()) - 1) < 0.05
    assert not any(bool((held == alone(step)[0][0]).all(1).any()) for step in range(300))


def test_alignments_are_those_of_numpy():
    rule = apical.rule("fa", init=uniform(0.5))
    students = Students(lambda seed: linear.network(seed, 0.1), rule, SEEDS, inputs=30, rate=RATE)
    e = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1))
    found = scales.alignments(students, e)

    def angle(a, b):
        return np.degrees(np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)))

    for place, (W, _, B) in enumerate(arrays(students, "1")):
        errors = e[place].double().numpy()
        to_bp = np.mean([angle(B.T @ one, W.T @ one) for one in errors])
        to_pbp = np.mean([angle(B.T @ one, np.linalg.pinv(W) @ one) for one in errors])
        assert found[linear.TO_BP][place] == pytest.approx(to_bp, abs=1e-3)
        assert found[scales.TO_PBP][place] == pytest.approx(to_pbp, abs=1e-3)
        assert found[scales.TO_INVERSE][place] == pytest.approx(angle(W, np.linalg.pinv(B.T)), abs=1e-3)
        assert found[scales.TO_TRANSPOSE][place] == pytest.approx(angle(W, B), abs=1e-3)


def test_normalized_errors_and_unit_angles_are_those_of_single_networks():
    outputs, y = torch.randn(3, 40, 4), torch.randn(40, 4)
    W, B = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    for place in range(3):
        assert normalized_squared_error(outputs, y)[place] == pytest.approx(
            apical.measures.normalized_squared_error(outputs[place], y)
        )
        torch.testing.assert_close(
            quadratic.unit_angles(W, B)[place], apical.measures.unit_angles(W[place], B[place]), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("condition", quadratic.FIG5C.conditions)
def test_in_every_phase_one_layer_stands_still(condition, tmp_path, monkeypatch):
    seen, learn = [], Students.learn

    def looked_at(students, x, y):
        learn(students, x, y)
        seen.append((students.weight("0").clone(), students.weight("2").clone()))

    monkeypatch.setattr(Students, "learn", looked_at)
    task = Task(condition, (1,), 1.0, {"phase 1": 3, "phase 2": 4, "phase 3": 5}, tmp_path)
    record = quadratic.FIG5C.run(task)
    assert record.arrays["bounds"] == [0, 3, 7, 12]
    phases = [2] * 4 + [3] * 5 if condition == "without phase 1" else [1] * 3 + [2] * 4 + [3] * 5
    assert len(seen) == len(phases)
    for (before, after), phase in zip(pairwise(seen), phases[1:], strict=True):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([False, True] if phase == 2 else [True, False])


def test_the_t_test_is_students():
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, 20), random.normal(1, 1, 20)
    pooled = (a.var(ddof=1) + b.var(ddof=1)) / 2
    t = (a.mean() - b.mean()) / np.sqrt(pooled * 2 / 20)
    assert depth.difference(a, b) == pytest.approx(2 * stats.t.sf(abs(t), 38))
    assert np.isnan(depth.difference(a[:1], b))


def test_what_the_paper_prints():
    one = linear.FIG2A
    assert (linear.INPUTS, linear.HIDDEN, linear.OUTPUTS) == (30, 20, 10)
    assert (one.weights, one.feedback, one.seeds) == (0.01, 0.5, 20)
    net = linear.network(0, one.weights)
    assert [tuple(p.shape) for p in net.parameters()] == [(20, 30), (10, 20)]
    assert all(0.009 < float(p.detach().abs().max()) <= 0.01 for p in net.parameters())
    assert depth.SIZES == {3: (30, 20, 10), 4: (30, 20, 10, 10)}
    assert (quadratic.INPUTS, quadratic.HIDDEN, quadratic.OUTPUTS) == (20, 1000, 20)
    final = {name: Record(curves={depth.ERROR: Curve([0], [[1.0], [1.1]])}) for name in depth.FIG3D.conditions}
    printed = {row.label: row.published for row in depth.FIG3D.outcome(final).rows}
    for rule, p in (("fa", 9e-13), ("bp", 3e-12)):
        published = printed[f"log10 of P, four layers against three, {rule}"]
        assert published.tag == "P"
        assert 10**published.value == pytest.approx(p)


@pytest.mark.parametrize("one", EXPERIMENTS, ids=lambda one: one.name)
def test_an_outcome_copes_with_what_is_missing(one):
    one.outcome({})


def test_claims_can_fail():
    def curve(*rows):
        return Curve([0, 1000, 2000], rows)

    slow = Record(curves={linear.ERROR: curve([1.0, 0.9, 0.8], [1.0, 0.9, 0.7])})
    quick = Record(curves={linear.ERROR: curve([1.0, 1e-5, 1e-9], [1.0, 1e-5, 1e-8])})
    held = {c.text: c.holds for c in linear.FIG2A.outcome({"bp": quick, "fa": quick, "shallow": slow}).claims}
    assert all(held.values())
    failed = [c.holds for c in linear.FIG2A.outcome({"bp": slow, "fa": slow, "shallow": quick}).claims]
    assert not any(failed)
    away = Record(curves={linear.TO_BP: curve([90.0, 90.0, 90.0])})
    assert [c.holds for c in linear.FIG2B.outcome({"fa": away}).claims] == [True, False, True]
    better = {name: np.array([1.0, 1.1]) / (100 if "4" in name else 1) for name in depth.FIG3D.conditions}
    worse = {name: 1 / values for name, values in better.items()}
    assert all(c.holds for c in depth.FIG3D.judged(better)[1])
    assert [c.holds for c in depth.FIG3D.judged(worse)[1][:2]] == [False, False]


@pytest.mark.parametrize(
    ("one", "condition", "lengths"),
    [
        (linear.FIG2A, "reinforce", {"examples": 200}),
        (linear.FIG2B, "fa", {"examples": 200}),
        (quadratic.FIG5C, "three phases", {"phase 1": 70, "phase 2": 70, "phase 3": 60}),
    ],
    ids=["2a", "2b", "5c"],
)
def test_a_course_that_was_stopped_ends_as_one_that_was_not(one, condition, lengths, tmp_path, monkeypatch):
    monkeypatch.setattr("apical.papers.experiment.CHECKPOINT_SECONDS", -1.0)
    whole = one.run(Task(condition, SEEDS, 1.0, lengths, tmp_path / "whole"))
    learn, calls = Students.learn, []

    def stopping(students, x, y):
        calls.append(1)
        if len(calls) == 150:
            raise KeyboardInterrupt
        learn(students, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Students, "learn", stopping)
        with pytest.raises(KeyboardInterrupt):
            one.run(Task(condition, SEEDS, 1.0, lengths, tmp_path / "stopped"))
    again = one.run(Task(condition, SEEDS, 1.0, lengths, tmp_path / "stopped"))
    assert whole.curves == again.curves
