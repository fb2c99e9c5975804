"""No feedback: only the layers next to the output learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from typing_extensions import override

from apical.pathways.base import Pathway
from apical.synapses.transformed import cut, transforming

if TYPE_CHECKING:
    from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class NoPathway(Pathway):
    """No signal leaves any synapse: only those next to the output learn (lillicrap2016, shallow learning).

    >>> import apical
    >>> apical.Rule("none").pathway == apical.rule("shallow").pathway
    True
    """

    name: ClassVar[str] = "none"

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return (cut(x) if transforming() else x.detach()), None
