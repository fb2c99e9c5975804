"""Feedback that is the weights themselves: backpropagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from apical.plasticity.base import Plasticity
from apical.synapses.storage import weight_of


@dataclass(frozen=True)
class Transport(Plasticity):
    """B = W at every step: backpropagation (reference 1.1).

    >>> import apical
    >>> apical.Rule("layer-wise", "transport").plasticity == apical.rule("bp").plasticity
    True
    """

    name: ClassVar[str] = "transport"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise"})

    @override
    def keeps(self, owner: nn.Module) -> Tensor:
        weight = weight_of(owner)
        assert weight is not None
        return weight.detach()
