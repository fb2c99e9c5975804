"""Direct feedback: the signal at every synapse's input is the output's error times its feedback, e D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from apical.pathways.base import Pathway
from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Direct(Pathway):
    """Signal e D at the input of every synapse, from the output error e (nokland2016 eq. 8)."""

    name: ClassVar[str] = "direct"
    wired: ClassVar[bool] = True

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        synapse.wiring.tap(synapse, synapse.label, synapse.plasticity, x)
        return x.detach(), None
