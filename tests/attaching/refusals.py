"""What can't work is refused before anything changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import apical
from comparison import anatomy, untouched
from networks import X, Y

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def assert_untouched(before: dict, model: nn.Module) -> None:
    untouched(before, anatomy(model))


def refused(model: nn.Module, rule="fa", error=ValueError, *, says: tuple[str, ...], **options) -> str:
    """attach fails with `error`, its message holds all of `says`, and neither model nor random state has changed."""
    before = anatomy(model)
    keys = list(model.state_dict())
    state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        apical.attach(model, rule, generator=torch.Generator().manual_seed(0), **options)
    message = str(caught.value)
    for part in says:
        assert part in message, f"{part!r} is not in: {message}"
    assert_untouched(before, model)
    assert list(model.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="nothing is attached"):
        apical.learner_of(model)
    return message


def loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)
