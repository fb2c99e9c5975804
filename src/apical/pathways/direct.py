"""Direct feedback: the signal at every synapse's input is the output's error times its feedback, e D."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from typing_extensions import override

from apical.checks import check_fields, number
from apical.distributed import parts_in_shards
from apical.pathways.base import Pathway, asked_by_the_model
from apical.pathways.taps import Taps
from apical.synapses import native
from apical.synapses.storage import form_of, mask_feedback
from apical.synapses.synapse import Synapse
from apical.synapses.transformed import cut

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner
    from apical.plasticity.base import Plasticity
    from apical.synapses.circuit import Circuit


@dataclass(frozen=True)
class FromOutput(Pathway):
    """A pathway whose signals come from the output's error.

    Every synapse takes ``x.detach()`` and leaves ``x`` as a tap, to which the output's error comes; see
    `apical.pathways.taps`.

    >>> from apical.pathways import Direct, Indirect
    >>> issubclass(Direct, FromOutput), issubclass(Indirect, FromOutput)
    (True, True)
    """

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        taps = synapse.whole_pass
        assert isinstance(taps, Taps)
        at_once = taps.cut(synapse, x)
        if at_once is None:
            if not synapse.sends_back and asked_by_the_model(synapse, x):
                x = x.detach()
            taps.leave(synapse, synapse.label, synapse.plasticity, x)
        updater = synapse.circuit.updater
        if updater is not None and x.requires_grad and (at_once is None or not native.within(synapse, x)):
            updater.see(x)
        if at_once is None:
            at_once = cut(x) if taps.transformed else x.detach()
        return at_once, None

    def taps(self, learner: Learner) -> Taps:
        """Where the signals of a learner's synapses enter."""
        return Taps(self.name, learner.output, learner.copies)

    @override
    def install(self, learner: Learner) -> Iterable[RemovableHandle]:
        taps = self.taps(learner)
        learner.passes.append(taps)
        handles = taps.follow(learner.model)
        for synapse in learner.synapses.values():
            if synapse.pathway == self:
                synapse.whole_pass = taps
                handles += taps.follow_synapse(synapse)
        if learner.blocks:
            whole = WholeAtOnce(
                learner.circuit, "with at=[...], the graph of a part that is sharded may end before its output"
            )
            handles.append(learner.model.register_forward_pre_hook(whole))
        for name, block in learner.blocks.items():
            handles.append(block.register_forward_hook(_BlockTap(taps, name, learner.rule.plasticity, block)))
        return handles


@dataclass(frozen=True)
class Direct(FromOutput):
    """Signal e D at the input of every synapse, from the output error e (nokland2016 eq. 8).

    D [outputs, *features] is kept in full, or made of less. Options go together, but for those that are refused by name.

    Args:
        positions: "all": every position of a map has feedback of its own. "same": D [outputs, channels], the same everywhere,
            divided by the number of positions, as the gradient behind a global average is. (h, w): D [outputs, channels, h, w],
            each value heard by the positions next to it, divided by their number.
        rank: D = P Q, with one P [outputs, rank] for all taps, which stays as it was drawn (orthogonal columns, P P^T = 1 in the
            mean), and a Q [rank, *] each, which learns where feedback does. Where there are no more outputs than that, D.
        shared: one matrix, of which every tap takes a part, scaled by its own fans (Launay 2020, arXiv 2006.12878). Fixed
            feedback only.
        seeded: nothing is kept but a seed; D is drawn again in every backward pass, block by block. Fixed feedback only.
        per_position: for outputs [N, T, V] and activity [N, T, d]: each position hears its own error, e[n, t] D, with D [V, d]
            and any T. None: where the example's output has more than two dimensions and all activity has the leading ones.

    Raises:
        ValueError: for values that can't be, or that don't go together.

    >>> import apical
    >>> apical.rule("dfa", positions="same", rank=64).pathway.rank
    64
    """

    name: ClassVar[str] = "direct"
    positions: Literal["all", "same"] | tuple[int, ...] = "all"
    rank: int | None = None
    shared: bool = False
    seeded: bool = False
    per_position: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.positions, str):
            grid = tuple(self.positions)
            if len(grid) != 2 or min(grid) < 1:
                raise ValueError(f"positions must be 'all', 'same' or (h, w), two numbers of at least 1, got {grid!r}")
            vars(self)["positions"] = grid  # A list comes from a file, and would not hash.
        if self.rank is not None:
            number("rank", self.rank, least=1, whole=True)
        if self.shared and self.seeded:
            raise ValueError(
                "shared=True and seeded=True: of seeded feedback nothing is kept that could be shared; give one"
            )
        if self.per_position and self.positions != "all":
            raise ValueError(
                f"per_position=True and positions={self.positions!r}: where each position hears its own error, there are none to "
                "share a signal; give one"
            )

    @property
    def kept_in_full(self) -> bool:
        """Whether the feedback of every tap is D itself, wherever that is heard."""
        return self.rank is None and not self.shared and not self.seeded

    @override
    def taps(self, learner: Learner) -> Taps:
        forms = map(form_of, learner.owners.values())
        plain = self.kept_in_full and all(form is None or form.lead == 1 for form in forms)
        return Taps(self.name, learner.output, learner.copies, plain=plain)


class WholeAtOnce:
    """Pre-hook of a model: refuses parts of it whose shards fully_shard brings together one after another."""

    def __init__(self, circuit: Circuit, why: str) -> None:
        self.circuit, self.why = circuit, why

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Raise a RuntimeError if there are such parts."""
        if self.circuit.sharded and torch.is_grad_enabled() and (parts := parts_in_shards(module)):
            raise RuntimeError(
                f"{self.why}, and fully_shard was called on {', '.join(map(repr, parts))}, too; call it on the whole model alone"
            )


class _BlockTap:
    """Forward hook of a block named in ``at=``: cuts its output and leaves it as a tap. A class, so that models pickle."""

    def __init__(self, taps: Taps, label: str, plasticity: Plasticity, block: nn.Module) -> None:
        self.taps, self.label, self.plasticity = taps, label, plasticity
        self.own = block._buffers.get("feedback")

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if self.taps.muted or not torch.is_grad_enabled():
            return None
        found = module._buffers.get("feedback")
        form = form_of(module)
        common = form is not None and form.shared
        if found is not self.own and found is not None and not common and not torch.compiler.is_compiling():
            # Somebody has set it, perhaps to memory of the weights, which it would follow.
            self.own = module._buffers["feedback"] = found.detach().clone()
        if "feedback_mask" in module._buffers:
            mask_feedback(module)
        self.taps.leave(module, self.label, self.plasticity, output)
        if self.taps.transformed and forward_ad._current_level >= 0:
            raise RuntimeError(
                f"a tangent does not pass '{self.label}', at whose output the direct signal enters (at=[...]); pass under "
                "torch.no_grad(), or detach the learner"
            )
        return output.detach()
