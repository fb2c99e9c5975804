"""All rules; attaching, a step, and the gradients of a step, as most tests make them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import apical
from networks import X, Y, seed

RULES = tuple(apical.rules())
WIRED = ("dfa", "ifa", "kp-direct", "np-direct", "sg-direct")
TRAINED = ("kp", "matched", "urfb", "kp-direct")


def spread(*axes: Iterable) -> list:
    """All combinations of the axes' values, for parametrize; a value that is a tuple is those of several arguments.

    Values of all axes but the last meet in every combination at once, each time with another one of the last, in turn; the
    rest of them are slow.
    """
    listed = [list(axis) for axis in axes]
    found = []
    for places in itertools.product(*(range(len(axis)) for axis in listed)):
        values = [axis[place] for axis, place in zip(listed, places, strict=True)]
        flat = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
        quick = sum(places) % len(listed[-1]) == 0
        found.append(pytest.param(*flat, marks=() if quick else pytest.mark.slow))
    return found


def attach(model: nn.Module, rule="fa", example=X, n: int = 1, **options) -> apical.Learner:
    """With example_input only where the rule asks for it."""
    chosen = apical.rule(rule) if isinstance(rule, str) else rule
    return apical.attach(model, rule, example_input=example if chosen.direct else None, generator=seed(n), **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, x: Tensor = X, y: Tensor = Y) -> Tensor:
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def gradients(model: nn.Module, x: Tensor = X, y: Tensor = Y, call=None) -> dict[str, Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy((model if call is None else call)(x), y).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
