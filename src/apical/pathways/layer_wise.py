"""Layer-wise feedback: the signal at a synapse's input is its own error times its feedback, delta B."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from apical.checks import number
from apical.pathways.base import Pathway, asked_by_the_model
from apical.pathways.redrawing import Redraw
from apical.pathways.subspace import Tracking, auto, give, groups_of, outputs
from apical.plasticity.base import redrawn
from apical.synapses.storage import complete
from apical.synapses.synapse import Synapse
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner

Subspaces = Literal["tracked", "random"]


@dataclass(frozen=True)
class LayerWise(Pathway):
    """Signal delta B at the input of every synapse (reference 1.1, 1.3).

    With `rank`, the error is seen through r directions, the rows of P: the signal (delta P^T)(P B) costs about r / out of what
    delta B does, and nothing else changes (see `apical.pathways.subspace`). Weights and feedback learn as without it.

    Args:
        track: keep feedback on synapses that no signal leaves, so that Hebbian feedback is learned there too (amit2019 fig. 10).
        rank: r, how many directions of each layer's (or group's) outputs; below 1, a fraction of these. Layers with no more than
            r outputs stay as they are. "auto": chosen for each layer where that is quicker; see `auto`. None: all.
        subspace: "tracked": P follows the leading directions of the errors' covariance C. "random": P stays as drawn.
        rows: most errors, of batch and positions, that enter C at once. memory: C <- memory C + (1 - memory) new.
        every: training steps from one update of C and P to the next.

    >>> import apical
    >>> apical.Rule(apical.LayerWise(track=True), apical.Hebbian()).name
    'layer-wise/hebbian'
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 10))
    >>> learner = apical.attach(net, apical.rule("kp", rank=2))
    >>> learner.synapses["2"].feedback.shape, learner.synapses["2"].projection.shape
    (torch.Size([10, 3]), torch.Size([2, 10]))
    """

    name: ClassVar[str] = "layer-wise"
    track: bool = False
    rank: int | float | Literal["auto"] | None = None
    subspace: Subspaces = "tracked"
    rows: int = 2048
    memory: float = 0.8
    every: int = 5

    def __post_init__(self) -> None:
        if not (self.rank is None or self.rank == "auto"):
            whole = isinstance(self.rank, Integral) or (isinstance(self.rank, float) and self.rank >= 1)
            number(
                "rank", self.rank, above=0, whole=whole, otherwise="; or a fraction of the outputs below 1, or 'auto'"
            )
        if self.subspace not in get_args(Subspaces):
            raise ValueError(f"subspace must be 'tracked' or 'random', got {self.subspace!r}")
        number("rows", self.rows, least=1, whole=True)
        number("every", self.every, least=1, whole=True)
        number("memory", self.memory, least=0)
        if self.memory >= 1:
            raise ValueError(f"memory must be below 1, the share of C that stays, got {self.memory!r}")

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

    def reduce(self, synapse: Synapse, sources: Sequence[torch.Generator]) -> None:
        """Have a synapse seen through `rank` directions, drawn for each copy, if that is asked for and they are fewer.

        Raises:
            ValueError: for a kind of layer that can't be.
        """
        if self.rank is None:
            return
        if synapse.output_dim is None:
            if self.rank == "auto":
                return
            raise ValueError(
                f"'{synapse.label}', a {synapse.plain.__name__}, can't be seen through rank={self.rank} directions; give it a "
                f"rule without rank in a dict of rules ({{'': ..., '{synapse.label}': 'fa'}}), or all of them rank='auto'"
            )
        out = outputs(synapse) // groups_of(synapse)
        r = auto(synapse) if self.rank == "auto" else self.rank
        rank = max(1, round(r * out)) if r < 1 else int(r)
        if rank < out:
            tracking = Tracking(self.rows, self.memory, self.every) if self.subspace == "tracked" else None
            give(synapse, rank, tracking, sources)

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
