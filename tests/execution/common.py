"""What the tests of execution share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import apical
from apical.training.options import rule_of
from comparison import equal
from networks import X, seed

IMAGES = torch.randn(8, 3, 6, 6, generator=seed(7))


def attach(model: nn.Module, rule: str, example=X, *, shown: bool = False, n: int = 1) -> apical.Learner:
    rule, _, share = rule.partition(" ")  # "kp 0.5": with half of all connections.
    chosen = rule_of(rule)  # "kp:rank=2": with options.
    shown = shown or chosen.direct
    connectivity = float(share) if share else None
    return apical.attach(
        model, chosen, example_input=example if shown else None, generator=seed(n), connectivity=connectivity
    )


def same(got: dict[str, Tensor], expected: dict[str, Tensor], **tolerance) -> None:
    """Equal gradients, of at least two parameters that learn."""
    assert sum(bool(g.any()) for g in expected.values()) >= 2
    equal(got, expected, **tolerance)
