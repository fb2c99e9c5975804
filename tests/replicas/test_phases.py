"""Rules with a phase, side by side."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from learning import spread
from networks import ManyKinds
from replicas.common import OPTIMIZERS, ROWS, N, X, Y, attached, chain, losses, same, trained, without_biases

REGRESSIONS = {
    "np": {},
    "np, ridge": {"solver": "ridge"},
    "np, uniform": {"distribution": "uniform", "noise": 0.1, "warmup": 2},
    "sg": {"rate": 0.5},
    "sg, ridge": {"solver": "ridge", "gamma": 2.0},
    "reinforce": {"noise": 0.1},
}


@pytest.mark.parametrize(
    ("make", "name", "optimizer", "pool"),
    spread([chain, without_biases, ManyKinds], REGRESSIONS, itertools.product(OPTIMIZERS, [64, 2**20])),
)
def test_feedback_regresses_as_alone(make, name, optimizer, pool, monkeypatch):
    if make is ManyKinds and "ridge" in name:
        pytest.skip("ridge is for linear layers")
    monkeypatch.setattr("apical.noise.POOL", pool)
    singles = attached(make, apical.rule(name.partition(",")[0], **REGRESSIONS[name]))
    before = [{k: v.clone() for k, v in model.state_dict().items() if k.endswith("feedback")} for model in singles]
    same(trained(singles, OPTIMIZERS[optimizer]), singles)
    assert all(
        not torch.equal(model.state_dict()[k], b[k]) for model, b in zip(singles, before, strict=True) for k in b
    )


def channels_last() -> nn.Sequential:
    layers = nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3)
    return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("rule", "pool"), [("np", 64), ("np", 2**20), ("wm", 2**20)])
def test_copies_have_the_memory_format_of_one_and_its_noise(rule, pool, monkeypatch):
    monkeypatch.setattr("apical.noise.POOL", pool)
    singles = attached(channels_last, rule)
    same(trained(singles, OPTIMIZERS["torch"]), singles)


@pytest.mark.parametrize(
    "rule",
    [*("np", "sg", "sg-direct", "reinforce"), *(apical.rule(name, solver="ridge") for name in ("sg", "sg-direct"))],
    ids=lambda rule: rule if isinstance(rule, str) else f"{rule.name}-ridge",
)
def test_one_copy_learns_as_the_network_itself(rule):
    (single,) = attached(chain, rule)[:1]
    replicas = apical.replicate([single], example_input=X[0])
    alone, learner = apical.learner_of(single), apical.learner_of(replicas)
    alone.generator.manual_seed(3)
    learner.generator.manual_seed(3)
    x, y = X[:1], Y[:1]
    cross_entropy(replicas(x)[0], y[0]).mean().backward()
    learner.adapt(x, y, cross_entropy)
    own, targets = X[0], Y[0]
    cross_entropy(single(own), targets).mean().backward()
    alone.adapt(own, targets, cross_entropy)
    same(replicas.split(), [single])
    for mine, its in zip(replicas.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("like", [torch.empty(N, ROWS, 6), torch.empty(ROWS, N, 6).transpose(0, 1)])
def test_a_batch_whose_memory_is_filled_anew_is_another_batch(like):
    replicas = apical.replicate(lambda: nn.Linear(6, 3), N)
    apical.attach(replicas, "bp")
    x = torch.ones_like(like)
    before = replicas(x)
    x.data.zero_()
    assert not torch.equal(replicas(x), before)
    torch.testing.assert_close(replicas(x), replicas(x.clone()))


def test_feedback_regresses_on_the_pass_that_the_loop_has_made():
    replicas = apical.replicate(attached(chain, "sg"), example_input=X[0])
    learner, passes = apical.learner_of(replicas), []
    losses(replicas(X)).sum().backward()
    learner.adapt(X, Y, cross_entropy)  # The first time, whether the model is random is looked at.
    replicas.model.register_forward_hook(lambda *_: passes.append(1))
    x = X.clone()
    losses(replicas(x)).sum().backward()
    learner.adapt(x, Y, cross_entropy)
    assert len(passes) == 2
    x.add_(1)
    torch.testing.assert_close(replicas(x), replicas(x.clone()))
