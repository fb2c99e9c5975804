"""Samples that depend on each other: what perturbations learn from them, and how that is noticed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy
from networks import seed

X, Y = torch.randn(8, 5, generator=seed(1)), torch.randint(3, (8,), generator=seed(2))
ROAD = torch.eye(8) / 2 + torch.eye(8).roll(1, 0) / 2
"""Each node of a ring sees itself and one neighbour."""


class Graph(nn.Module):
    """Nodes of a graph are the samples; activity meets between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(ROAD[: len(x), : len(x)] @ self.b(torch.tanh(self.a(x)))))


class AcrossSamples(nn.Module):
    """Attention over the batch, or over the positions of each sample [N, T, F]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        h = h + torch.softmax(h @ self.b(h).mT, -1) @ h
        return self.c(h) if h.dim() == 2 else self.c(h).mean(1)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), *between, nn.Tanh(), nn.Linear(6, 3))


def contrastive(outputs: Tensor, targets: object) -> Tensor:
    z = F.normalize(outputs, dim=1)
    return F.cross_entropy(z @ z.t() * 3, (torch.arange(len(z)) + 1) % len(z), reduction="none")


def of_pairs(outputs: Tensor, targets: object, *, halves: bool) -> Tensor:
    other = outputs.roll(len(outputs) // 2, 0) if halves else outputs.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return (outputs - other).square().sum(1)


def centred(outputs: Tensor, targets: object) -> Tensor:
    return (outputs - outputs.mean(0)).square().sum(1)


@pytest.mark.parametrize("rule", ["np", "reinforce"])
@pytest.mark.parametrize(
    ("make", "criterion", "depend"),
    [
        (mlp, cross_entropy, False),
        (partial(mlp, nn.BatchNorm1d(6)), cross_entropy, False),
        (partial(mlp, nn.Dropout(0.5)), cross_entropy, False),
        (mlp, contrastive, True),
        (mlp, partial(of_pairs, halves=True), True),
        (mlp, partial(of_pairs, halves=False), True),
        (mlp, centred, True),
        (Graph, cross_entropy, True),
        (AcrossSamples, cross_entropy, True),
    ],
)
def test_the_first_phase_finds_losses_that_depend_on_other_samples(rule, make, criterion, depend):
    torch.manual_seed(0)
    net = make()
    learner = apical.attach(net, rule, example_input=X)
    for _ in range(2):
        criterion(net(X), Y).mean().backward()
        learner.adapt(X, Y, criterion)
    assert list(learner.phases.recorder.coupled.values()) == [depend]


def test_attention_over_the_positions_of_a_sample_is_no_dependence_of_samples():
    torch.manual_seed(0)
    net = AcrossSamples()
    x = X.unsqueeze(1) + torch.randn(8, 4, 1)
    learner = apical.attach(net, "np", example_input=x)
    cross_entropy(net(x), Y).mean().backward()
    learner.adapt(x, Y, cross_entropy)
    assert list(learner.phases.recorder.coupled.values()) == [False]


def test_a_criterion_that_is_made_anew_for_every_batch_is_looked_at_once(monkeypatch):
    from apical.phases.clean_pass import CleanPass

    net = mlp()
    learner = apical.attach(net, "reinforce")
    looks, own = [], CleanPass.true_signals
    monkeypatch.setattr(CleanPass, "true_signals", lambda *args: looks.append(args[0]) or own(*args))
    for number in range(3):
        for criterion in (
            lambda o, y, n=number: cross_entropy(o, y) + 0 * n,
            partial(contrastive),
            nn.CrossEntropyLoss(reduction="none"),
        ):
            net.zero_grad()
            criterion(net(X), Y).mean().backward()
            learner.adapt(X, Y, criterion)
    assert len(looks) == 3


@pytest.mark.parametrize(("make", "criterion"), [(mlp, contrastive), (mlp, centred), (Graph, cross_entropy)])
def test_reinforce_has_no_bias_where_samples_depend_on_each_other(make, criterion):
    """On average over noise it is backpropagation of the whole loss; by each sample's own loss it is far from that."""
    torch.manual_seed(0)
    net, total = make(), 0
    rule = apical.rule("reinforce", noise=1e-2, distribution="rademacher")
    learner = apical.attach(net, {"": rule, "c": "bp"} if make is Graph else rule)
    for _ in range(500):
        net.zero_grad()
        criterion(net(X), Y).mean().backward()
        learner.adapt(X, Y, criterion)
        total = total + next(net.parameters()).grad
    learner.detach()
    net.zero_grad()
    criterion(net(X), Y).mean().backward()
    assert F.cosine_similarity(total.flatten(), next(net.parameters()).grad.flatten(), dim=0) > 0.9
