"""Figures 4 to 11: the recipe against the paper's equations, the protocol of untied networks, and claims that can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import apical
from apical.data import ImageData, Split
from apical.papers import find, vision
from apical.papers.amit2019 import training, untied
from apical.papers.amit2019.filters import mosaic, similarity
from apical.papers.experiment import Task
from apical.papers.record import Curve, Record

SHAPE = (3, 8, 8)


def split(n: int, seed: int = 0) -> Split:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, *SHAPE), generator=draw).to(torch.uint8)
    return Split(images, torch.randint(3, (n,), generator=draw))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return ImageData("drawn", split(40), split(12, 1), 3, ("a", "b", "c"))


def record(data, tmp_path, name, condition, lengths, seeds=(0,), **options) -> Record:
    return find(f"amit2019/{name}").run(Task(condition, seeds, 1.0, lengths, tmp_path, data, **options))


def f(h):
    return h.clamp(-1, 1)


@pytest.mark.parametrize("rule", ["bp-h", "urfb", "frfb"])
def test_simpnet_learns_by_the_papers_equations(data, tmp_path, rule):
    """Without dropout, which the equations don't have: delta (*) f', W and epsilon R by delta h, mean over the minibatch."""
    example = training.example_of(data)
    model = training.tied("simpnet", data, 4)
    for layer in model:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    learner = training.attached(model, rule, 4, example)
    task = Task(rule, (4,), 1.0, {}, tmp_path, data)
    _, own = training.training_of([learner], rule, data.train, task, example)
    names = list(learner.synapses)
    W = [learner.synapses[name].weight.detach().double().clone() for name in names]
    feedback = [learner.synapses[name].feedback for name in names]
    R = [w if r is None or rule == "bp-h" else r.detach().double().clone() for w, r in zip(W, feedback, strict=True)]
    own.learn(0)
    x, y = next(data.train.batches(500, 4, 0))
    h0 = x.double()
    a1 = F.conv2d(h0, W[0], padding=2).requires_grad_()
    pooled = F.max_pool2d(F.pad(f(a1), (1, 0, 1, 0)), 3, 2).flatten(1)
    a2 = pooled.detach() @ W[1].T
    h2 = f(a2)
    s = h2 @ W[2].T
    hot = F.one_hot(y, 3)
    # eqs 4-6, mu = 1 / (C - 1).
    e = (-(hot * (s <= 1)).double() + 0.5 * ((1 - hot) * (s >= -1)).double()) / len(y)
    delta2 = (e @ R[2]) * (a2.abs() <= 1)
    (delta1,) = torch.autograd.grad(pooled, a1, delta2 @ R[1])
    changes = [
        torch.nn.grad.conv2d_weight(h0, W[0].shape, delta1, padding=2),
        delta2.T @ pooled.detach(),
        e.T @ h2,
    ]
    for name, w, r, change in zip(names, W, R, changes, strict=True):
        synapse = learner.synapses[name]
        torch.testing.assert_close(synapse.weight.double(), w - 0.1 * change, rtol=1e-4, atol=1e-6)
        if rule != "bp-h" and synapse.feedback is not None:
            moved = r - 0.1 * change if rule == "urfb" else r
            torch.testing.assert_close(synapse.feedback.double(), moved, rtol=1e-4, atol=1e-6)


def test_half_of_the_connections_but_the_last_layers(data):
    learner = training.attached(training.tied("simpnet", data, 0), "urfb 50 %", 0, training.example_of(data))
    shares = [float((one.weight != 0).float().mean()) for one in learner.synapses.values()]
    assert all(0.4 < share < 0.6 for share in shares[:-1])
    assert shares[-1] == 1
    *_, middle, last = learner.synapses.values()
    assert 0.4 < float((middle.feedback != 0).float().mean()) < 0.6
    assert float((last.feedback != 0).float().mean()) == 1


@pytest.mark.parametrize(("rule", "seeds"), [("urfb", (0, 1)), ("frfb", (0,))])
def test_correlations_of_all_layers_are_measured(data, tmp_path, rule, seeds):
    found = record(data, tmp_path, "fig10", f"simpnet, {rule}", {"steps": 3}, seeds)
    curves = [found.curves[f"correlation, layer {number}"] for number in (1, 2, 3)]
    assert all(abs(row[0]) < 0.3 for curve in curves for row in curve.y)
    assert all(len(curve.y) == len(seeds) for curve in curves)
    assert curves[0].y[0][0] != curves[0].y[0][-1]


def test_the_tracked_feedback_of_the_first_layer_moves_as_its_weights_do(data):
    example = training.example_of(data)
    learner = training.attached(training.tied("simpnet", data, 0), "urfb", 0, example)
    tracked = training.Correlations(learner.model, "urfb", (0,), {"0": "layer 1"})
    W = learner.synapses["0"].weight
    with torch.no_grad():
        W.add_(1e4 * torch.randn_like(W))
    assert tracked()["correlation, layer 1"][0] > 0.99


def test_deepnet_s_keeps_its_first_convolution_and_starts_anew_untied(data, tmp_path, monkeypatch):
    monkeypatch.setattr(untied, "FROZEN_AFTER", 2)  # Epochs of one step.
    made = []
    original = untied.training_of

    def remember(learners, *args):
        made.append([{k: v.clone() for k, v in one.model.state_dict().items()} for one in learners])
        model, own = original(learners, *args)
        made.append(model)
        return model, own

    monkeypatch.setattr(untied, "training_of", remember)
    found = record(data, tmp_path, "fig11", "deepnet_s, urfb", {"tied": 4, "untied": 2})
    _, _, (start,), model = made
    learner = apical.learner_of(model)
    assert torch.equal(start["0.first.weight"], model.state_dict()["0.first.weight"])  # It does not learn on.
    kept = Task("", (0,), 1.0, {}, tmp_path).restore("first")
    assert kept is not None
    assert torch.equal(kept["weights"][0], start["0.first.weight"])
    # One filter at all positions at first; then each learns by itself.
    assert torch.equal(
        start["0.second.weight"], start["0.second.weight"][:, :1, :1].expand_as(start["0.second.weight"])
    )
    now = learner.synapses["0.second"].weight
    assert now.dim() == 6
    assert not torch.equal(now[:, 0, 0], now[:, 1, 1])
    assert sum(name.startswith("correlation") for name in found.curves) == 7
    tied_again = record(data, tmp_path / "short", "fig9", "deepnet_s, urfb", {"tied": 2, "untied": 1})
    assert tied_again.curves["tied, validation error"].x == [0, 1, 2]
    kept_short = Task("", (0,), 1.0, {}, tmp_path / "short").restore("first")
    assert kept_short is not None
    assert torch.equal(kept_short["weights"][0], kept["weights"][0])


def test_filters_are_compared_across_positions():
    one = torch.randn(6, 1, 1, 3, 5, 5)
    same, other = similarity(one.expand(6, 8, 8, 3, 5, 5))
    assert same == pytest.approx(1)
    assert abs(other) < 0.2
    same, _ = similarity(torch.randn(6, 8, 8, 3, 5, 5))
    assert abs(same) < 0.05
    picture = torch.tensor(mosaic(torch.randn(16, 8, 8, 3, 5, 5)))
    assert picture.shape == (8 * 7, 4 * 7, 3)


def test_fig8_shows_the_filters_of_the_untied_network(data, tmp_path):
    one = find("amit2019/fig8")
    found = record(data, tmp_path, "fig8", "simpnet, bp-h", {"tied": 1, "untied": 1})
    outcome = one.outcome({"simpnet, bp-h": found})
    assert [panel.kind for panel in outcome.panels] == ["image"]
    assert [claim.holds for claim in outcome.claims] == [True]  # They started alike.


def of(error: float, correlation: float = 0.0) -> Record:
    x = [0, 1, 2]
    curves = {f"{split} error": Curve(x, [[90.0, error, error]]) for split in ("training", "validation")}
    curves |= {f"correlation, layer {n}": Curve(x, [[0, 0, correlation + n / 10]]) for n in (1, 2, 3)}
    return Record(curves=curves, numbers={"test error": [error]}, seeds=[0])


GOOD = {"bp": 30.0, "bp-h": 32.0, "urfb": 33.5, "frfb": 36.0, "urfb 50 %": 36.0, "frfb 50 %": 45.0}


@pytest.mark.parametrize("name", ["fig4", "fig5", "fig6", "fig7"])
def test_claims_of_tied_networks_can_fail(name):
    one = find(f"amit2019/{name}")
    shift = {"simpnet": 0.0, "deepernet": 0.0, "deepnet": 8.0}
    far = {**GOOD, "frfb": 60.0}
    good, bad, worse = {}, {}, {}
    for condition in one.conditions:
        net, rule = condition.split(", ")
        good[condition] = of((far if net == "deepernet" else GOOD)[rule] + shift[net])
        bad[condition] = of(80 - GOOD[rule] - shift[net])
        worse[condition] = of(80 - GOOD[rule] - shift[net] + (30 if rule == "urfb" else 0))
    assert {claim.holds for claim in one.outcome(good).claims} == {True}
    held = zip(*([claim.holds for claim in one.outcome(each).claims] for each in (bad, worse)), strict=True)
    assert all(False in pair for pair in held)
    assert one.outcome({}).claims == []


def test_claims_about_alignment_can_fail():
    one = find("amit2019/fig10")
    good = one.outcome({"simpnet, urfb": of(30, 0.5), "simpnet, frfb": of(30, 0.3)})
    assert [claim.holds for claim in good.claims] == [True, True]
    bad = one.outcome({"simpnet, urfb": of(30, 0.1), "simpnet, frfb": of(30, 0.3)})
    assert [claim.holds for claim in bad.claims] == [False, False]
    deep = find("amit2019/fig11")
    layers = {f"correlation, layer {n}": value for n, value in enumerate((0.2, 0.95, 0.4), 2)}
    for values, held in ((layers, [True, True]), ({key: n / 10 for n, key in enumerate(layers)}, [False, False])):
        curves = {key: Curve([0], [[value]]) for key, value in values.items()}
        claims = deep.outcome({"deepnet_s, urfb": Record(curves=curves)}).claims
        assert [claim.holds for claim in claims] == held


def test_claims_of_untied_networks_can_fail():
    one = find("amit2019/fig9")

    def of_both(tied: float, free: float) -> Record:
        return Record(numbers={"tied, test error": [tied], "untied, test error": [free]})

    errors = {"bp-h": 30.0, "urfb": 33.0, "frfb": 50.0}
    good = {c: of_both(errors[c.split(", ")[1]], errors[c.split(", ")[1]] + 1) for c in one.conditions}
    assert {claim.holds for claim in one.outcome(good).claims} == {True}
    bad = {c: of_both(errors[c.split(", ")[1]], 90 - errors[c.split(", ")[1]]) for c in one.conditions}
    held = [claim.holds for claim in one.outcome(bad).claims]
    assert held.count(False) >= 8


def test_lengths():
    whole = ImageData(
        "cifar",
        Split(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000, dtype=torch.int64)),
        split_of_one(),
        1,
        ("a",),
    )
    assert find("amit2019/fig5").steps(whole) == {"steps": 1000 * 90}
    assert find("amit2019/fig9").steps(whole) == {"tied": 90_000, "untied": 90_000}
    assert replace(find("amit2019/fig5"), epochs=3).steps(whole) == {"steps": 270}


def split_of_one() -> Split:
    return Split(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))


def test_images_are_split_as_in_the_released_code(data):
    train, watched = training.split_up(data)
    assert len(train) == 36
    assert len(watched["validation"]) == 4
    assert vision.with_data(data, 5, 0.1) == 8
