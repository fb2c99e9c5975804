"""Thinned networks that learn, and what their masks hold."""

from __future__ import annotations

import math

import torch

import apical
from apical.losses import cross_entropy
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import seed


def attach(net, rule="kp", connectivity=0.5, n=3, **options) -> apical.Learner:
    return apical.attach(net, rule, example_input=X, generator=seed(n), connectivity=connectivity, **options)


def learn(learner, optimizer, steps=1, x=X) -> None:
    for _ in range(steps):
        cross_entropy(learner.model(x), Y).mean().backward()
        learner.adapt(x, Y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()


def sgd(learner, **options):
    return torch.optim.SGD(learner.model.parameters(), 0.05, **{"momentum": 0.9, "weight_decay": 0.01, **options})


def thin(learner) -> int:
    """How many masks there are; all of them hold."""
    found = 0
    for owner in (*learner.synapses.values(), *learner.blocks.values()):
        for name in ("weight", "feedback"):
            mask = owner._buffers.get(f"{name}_mask")
            if mask is not None:
                assert set(mask.unique().tolist()) == {0.0, 1.0}
                assert not getattr(owner, name)[mask == 0].any(), name
                found += 1
    return found


def state(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def near(mask: torch.Tensor, share: float) -> None:
    """Within five standard deviations."""
    assert abs(float(mask.mean()) - share) < 5 * math.sqrt(share * (1 - share) / mask.numel())
