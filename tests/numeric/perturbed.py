"""Networks whose phases are watched, and a batch."""

from __future__ import annotations

import torch

import apical


def half_square(outputs, targets):
    """Half the squared error per sample."""
    return (outputs - targets).square().flatten(1).sum(1) / 2


def attach(net, rule, x, seed=1, **options) -> apical.Learner:
    return apical.attach(
        net, apical.rule(rule, **options), example_input=x, generator=torch.Generator().manual_seed(seed)
    )


def batch(n, inputs, outputs, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, size, generator=g, dtype=torch.float64) for size in (inputs, outputs))
