"""No feedback weights, for pathways that need none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from apical.plasticity import Plasticity


@dataclass(frozen=True)
class _NoPlasticity(Plasticity):
    name = "none"
    pathways = frozenset({"none", "scalar"})
    names = ()

    def keeps(self, owner: Any) -> None:
        return None


NO_PLASTICITY = _NoPlasticity()
