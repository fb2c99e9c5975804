"""Networks to copy, a batch for each, and loops over them."""

from __future__ import annotations

import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from comparison import equal
from networks import flat_chain

N, ROWS = 3, 5
X = torch.randn(N, ROWS, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(3, (N, ROWS), generator=torch.Generator().manual_seed(2))


def chain() -> nn.Sequential:
    return flat_chain(None)


def without_biases() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 9, bias=False), nn.Tanh(), nn.Linear(9, 3, bias=False)).double()


def made(make) -> list[nn.Module]:
    models = []
    for seed in range(N):
        torch.manual_seed(seed)
        models.append(make())
    return models


def attached(make, rule, at=None) -> list[nn.Module]:
    models = made(make)
    for seed, model in enumerate(models):
        generator = torch.Generator().manual_seed(10 + seed)
        apical.attach(model, rule, example_input=X[0], at=at, generator=generator)
    return models


def losses(outputs, y=Y):
    return cross_entropy(outputs.flatten(0, 1), y.flatten()).view(N, -1).mean(1)


def same(ours: list[nn.Module], theirs: list[nn.Module]) -> None:
    for mine, its in zip(ours, theirs, strict=True):
        equal(mine.state_dict(), its.state_dict(), rtol=1e-10, atol=1e-12)


OPTIMIZERS = {
    "torch": lambda model, **options: torch.optim.SGD(model.parameters(), 0.1, **options),
    "local": lambda model, **options: apical.LocalSGD(apical.learner_of(model), 0.1, **options),
}


def trained(singles, optimize, steps=3):
    """Copies of `singles` and `singles` themselves after as many steps, with each one's phase."""
    replicas = apical.replicate(singles, example_input=X[0])
    learner, moves = apical.learner_of(replicas), optimize(replicas)
    for _ in range(steps):
        losses(replicas(X)).sum().backward()
        learner.adapt(X, Y, cross_entropy)
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = optimize(single)
        x, y = X[index], Y[index]
        for _ in range(steps):
            cross_entropy(single(x), y).mean().backward()
            apical.learner_of(single).adapt(x, y, cross_entropy)
            own.step()
            own.zero_grad()
    return replicas.split()


NUMBERS = {
    "urfb": [{"epsilon": 0.0}, {"epsilon": 0.5}, {"epsilon": 1.0}],
    "kp-direct": [{"epsilon": 1.0}, {"epsilon": 0.25}, {"epsilon": 2}],
    "usf": [{"scale": 1.0}, {}, {"scale": 0.1}],
    "wm": [{"noise": 0.5, "rate": 0.1}, {"noise": 2.0, "rate": 0.3}, {"noise": 1.0, "decay": 0.1}],
    "np": [{"init": "nokland2016"}, {"init": "amit2019"}, {"init": nn.init.orthogonal_}],
    "fa": [{"init": "nokland2016"}, {"init": "amit2019"}, {"init": nn.init.orthogonal_}],
}


class Parts(nn.Sequential):
    """Layers 5-5 by what is asked for: a new one, an earlier one again, a new one with an earlier one's weights, or parts."""

    def __init__(self, plan) -> None:
        super().__init__()
        made: list[nn.Module] = []
        self._add(self, plan, made)

    def _add(self, parts: nn.Sequential, plan, made: list[nn.Module]) -> None:
        for kind in plan:
            if isinstance(kind, list):
                inner = nn.Sequential()
                self._add(inner, kind, made)
                made.append(inner)
            elif kind == "again" and made:
                inner = made[-1]
            else:
                inner = nn.Linear(5, 5, dtype=torch.float64)
                first = next((one for one in made if isinstance(one, nn.Linear)), None)
                if kind == "tied" and first is not None:
                    inner.weight = first.weight
                made.append(inner)
            parts.extend([inner, nn.Tanh()])
