"""What an entry of the zoo is, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """A well-known network in a tiny build with random weights.

    Attributes:
        name: as the table calls it. library: where it comes from. build: makes it. example: a batch as it takes it.
        output: which tensor the loss is made of, as `attach` takes it.
        no_kp: why rules whose feedback follows the weights can't have it, in words; empty where they can. no_dfa: the same of
            direct rules.
        apart: layers that take another rule, name -> rule. refused: why `attach` refuses it, in words; empty where it does not.
        dtype: in which gradients are compared. tolerance: relative, of their difference; more where a network computes in
            float32 somewhere.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    output: Any = None
    no_kp: str = ""
    no_dfa: str = ""
    apart: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-6

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def images(size: int = 32, batch: int = 3) -> Callable[[], Tensor]:
    return lambda: noise(batch, 3, size, size)


def tokens(length: int = 8, batch: int = 2, words: int = 50) -> Tensor:
    return torch.randint(words, (batch, length), generator=torch.Generator().manual_seed(2))
