"""Direct feedback: the signal at every synapse's input is the output's error times its feedback, e D."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from typing_extensions import override

from apical.distributed import parts_in_shards
from apical.pathways.base import Pathway, asked_by_the_model
from apical.pathways.taps import Taps
from apical.synapses import native
from apical.synapses.storage import mask_feedback
from apical.synapses.synapse import Synapse
from apical.synapses.transformed import cut

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner
    from apical.plasticity.base import Plasticity
    from apical.synapses.circuit import Circuit


@dataclass(frozen=True)
class Direct(Pathway):
    """Signal e D at the input of every synapse, from the output error e (nokland2016 eq. 8).

    Every synapse takes ``x.detach()`` and leaves ``x`` as a tap, to which the output's error comes; see
    `apical.pathways.taps`.

    >>> import apical
    >>> apical.Rule("direct", "hebbian").direct
    True
    """

    name: ClassVar[str] = "direct"

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
        if found is not self.own and found is not None and not torch.compiler.is_compiling():
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
