"""Feedback that is the weights themselves: backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from apical.plasticity.base import Plasticity


@dataclass(frozen=True)
class Transport(Plasticity):
    """B = W at every step: backpropagation (reference 1.1)."""

    name: ClassVar[str] = "transport"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise"})
    names: ClassVar[tuple[str, ...]] = ()

    @override
    def keeps(self, owner: nn.Module) -> Tensor:
        return owner._parameters["weight"].detach()  # type: ignore[union-attr, operator]
