"""Layer-wise feedback: the signal at a synapse's input is its own error times its feedback, delta B."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from typing_extensions import override

from apical.pathways.base import Pathway, asked_by_the_model
from apical.pathways.redrawing import Redraw
from apical.plasticity.base import redrawn
from apical.synapses.storage import complete
from apical.synapses.synapse import Synapse
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner


@dataclass(frozen=True)
class LayerWise(Pathway):
    """Signal delta B at the input of every synapse (reference 1.1, 1.3).

    Args:
        track: keep feedback on synapses that no signal leaves, so that Hebbian feedback is learned there too (amit2019 fig. 10).

    >>> import apical
    >>> apical.Rule(apical.LayerWise(track=True), apical.Hebbian()).name
    'layer-wise/hebbian'
    """

    name: ClassVar[str] = "layer-wise"
    track: bool = False

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if x.requires_grad:
            if not synapse.sends_back and asked_by_the_model(synapse, x):
                return x.detach(), None
            if not (synapse.sends_back or complete(synapse)):
                raise RuntimeError(
                    f"the input of '{synapse.label}' now requires a gradient, but its feedback was dropped because its first "
                    "input was data; attach with apical.rule(name, track=True) to keep it, or detach the input"
                )
            if synapse.whole_pass is not None:  # Else magnitudes would silently stay as they are.
                synapse.whole_pass.within(synapse.label)
            return x, synapse.plasticity.keeps(synapse)
        if transforming() and synapse.sends_back:
            return x, synapse.plasticity.keeps(
                synapse
            )  # Under a transform a tensor does not tell whether it has a graph.
        # Trainable feedback that is still there gets its gradient in any case: DDP waits for every parameter.
        return x, synapse.feedback if synapse.connection.increment is not None else None

    @override
    def install(self, learner: Learner) -> Iterable[RemovableHandle]:
        own = [s for s in learner.synapses.values() if s.pathway == self and redrawn(s.plasticity) is not None]
        if not own:
            return ()
        redraw = Redraw(learner)
        learner.passes.append(redraw)
        for synapse in own:
            synapse.whole_pass = redraw
        return redraw.follow(learner.model)
