"""No feedback weights, for pathways that need none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from typing_extensions import override

from apical.plasticity.base import Plasticity


@dataclass(frozen=True)
class NoPlasticity(Plasticity):
    """No feedback weights (lillicrap2016, shallow learning and node perturbation).

    >>> import apical
    >>> apical.rule("shallow").plasticity
    NoPlasticity()
    """

    name: ClassVar[str] = "none"
    pathways: ClassVar[frozenset[str]] = frozenset({"none", "scalar"})

    @override
    def keeps(self, owner: nn.Module) -> None:
        return None
