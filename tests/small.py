"""Two networks of every layer that matters, a batch for them, estimates without their noise, and what tests that compile bear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apical.phases.noisy_pass import Estimate

X = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(3, (8,), generator=torch.Generator().manual_seed(2))

dynamo = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.script_method:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)
"""What Dynamo itself does while it traces any autograd.Function or hook, attached or not."""


def chain() -> nn.Sequential:
    """Inner synapses keep shape, as the indirect rule wants it."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)
    ).double()


def convolutions() -> nn.Sequential:
    """Padding, groups, strides, transposed."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3),
    ).double()  # fmt: skip


def exactly(phase, places, c, distribution, calls=None) -> dict[tuple[str, int], Estimate]:
    """In place of `estimates`: what they are on average for small noise."""
    found: dict[tuple[str, int], Estimate] = {}
    phase.clean.true_signals(
        list(places), lambda place, call, signal: found.update({(place, call): Estimate(signal.clone())})
    )
    return {place: estimate for place, estimate in found.items() if calls is None or place in calls}
