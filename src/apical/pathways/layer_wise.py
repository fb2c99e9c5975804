"""Layer-wise feedback: the signal at a synapse's input is its own error times its feedback, delta B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from apical.pathways.base import Pathway
from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class LayerWise(Pathway):
    """Signal delta B at the input of every synapse (reference 1.1, 1.3).

    track: keep feedback on synapses that no signal leaves, so that Hebbian feedback is learned there too (amit2019 fig. 10).
    """

    name: ClassVar[str] = "layer-wise"
    track: bool = False

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if x.requires_grad:
            if not (synapse.sends_back or synapse.plasticity.available(synapse)):
                raise RuntimeError(
                    f"the input of '{synapse.label}' now requires a gradient, but its feedback was dropped because its first "
                    "input was data; attach with apical.rule(name, track=True) to keep it, or detach the input"
                )
            if synapse.plasticity.redraws:  # Else they would silently stay as they are.
                synapse.wiring.within(
                    synapse.label, "batchwise magnitudes are drawn with every pass of the whole model"
                )
            return x, synapse.plasticity.keeps(synapse)
        # Trainable feedback that is still there gets its gradient in any case: DDP waits for every parameter.
        return x, synapse.feedback if synapse.plasticity.trainable else None
