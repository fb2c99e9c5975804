"""Weights that several modules hold.

Synapses share their masks, and feedback that learns with the weights: the gradient of shared weights is the sum of all their
synapses' products, and feedback that is to follow them (Kolen-Pollack's law) has to get that sum as well. So it does where one
of the modules is an embedding, which looks its words up in the weights of the output layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from apical.synapses.exported import silent
from apical.synapses.storage import kept, use_again
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.synapses.synapse import Synapse

LOOKUPS = (nn.Embedding, nn.EmbeddingBag)
"""Modules that look rows of their weights up."""

RENORMALIZES = (
    "an embedding with max_norm moves the rows that it looks up by no gradient, and they are a layer's weights, which feedback "
    "is to follow (Kolen-Pollack); leave max_norm out, or give that layer another rule, with rule={'': ..., its name: 'fa'}"
)
"""What is to be said of an embedding with `max_norm` and such weights."""


def settle_ties(synapse: Synapse, others: Iterable[Synapse]) -> None:
    """Let the synapse share with those of `others` that hold its weights, and with nobody else."""
    weight = synapse._parameters.get("weight")
    if weight is None:
        return
    others = [other for other in others if other is not synapse]
    tied = [other for other in others if other._parameters.get("weight") is weight]
    if tied:
        masked = next((one for one in (*tied, synapse) if "weight_mask" in one._buffers), synapse)
        for one in (synapse, *tied):
            _share(masked, one, "weight_mask")
    if not _follows_weights(synapse):
        return
    alike = [other for other in others if _follows_weights(other) and other.plasticity == synapse.plasticity]
    tied = [other for other in alike if other in tied]
    source = next((one for one in (*tied, synapse) if kept(one, "feedback") is not None), None)
    own = synapse._parameters.get("feedback")
    if tied and source is not None:
        for one in (synapse, *tied):
            one._parameters["feedback"] = source._parameters["feedback"]
            _share(source, one, "feedback_mask")
            one.sends_back = True
            use_again(one)
    elif own is not None and any(other._parameters.get("feedback") is own for other in alike):
        synapse._parameters["feedback"] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)


def feedback_is_shared(synapse: Synapse, others: Iterable[Synapse]) -> bool:
    """Whether another synapse has the very feedback of this one."""
    own = synapse._parameters.get("feedback")
    return own is not None and any(one is not synapse and one._parameters.get("feedback") is own for one in others)


def _follows_weights(synapse: Synapse) -> bool:
    return synapse.connection.increment is not None and synapse.pathway.name == "layer-wise"


def _share(source: Synapse, synapse: Synapse, name: str) -> None:
    """Give the synapse the mask of another, or none as that one has none."""
    mask = source._buffers.get(name)
    if mask is not None:
        synapse._buffers[name] = mask
    else:
        synapse._buffers.pop(name, None)
    synapse.sparse = synapse.sparse or source.sparse


class Lookup:
    """Hooks of an embedding whose weights are synapses' too, with feedback that follows them.

    While it is called, it has for its weights a view of them, by which their gradient comes to that feedback as well.

    Args:
        synapses: one for each feedback.
    """

    def __init__(self, synapses: list[Synapse]) -> None:
        self.synapses = synapses

    def begin(self, module: nn.Module, args: Any) -> None:
        """Pre-hook of the embedding."""
        own = weight = module._parameters.get("weight")
        # Under a transform a tensor does not tell whether it has a graph.
        if not torch.is_grad_enabled() or weight is None or not (weight.requires_grad or transforming()):
            return
        if module.max_norm is not None:
            raise RuntimeError(f"'{self.synapses[0].label}' shares its weights with an embedding: {RENORMALIZES}")
        for synapse in self.synapses:
            feedback = kept(synapse, "feedback")
            if synapse._parameters.get("weight") is own and feedback is not None:
                weight = _followed(weight, feedback, synapse)
        vars(module)["weight"] = weight

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the embedding. Calls without a graph, of another thread, leave alone what one with it has set."""
        if torch.is_grad_enabled():
            vars(module).pop("weight", None)


def follow_lookups(model: nn.Module, synapses: Iterable[Synapse]) -> list[RemovableHandle]:
    """Let feedback that follows weights get their gradients from embeddings that have the same; what takes the hooks away."""
    following = [one for one in synapses if _follows_weights(one) and one._parameters.get("weight") is not None]
    handles = []
    for module in model.modules() if following else ():
        if isinstance(module, LOOKUPS):
            weight = module._parameters.get("weight")
            tied = {one._parameters.get("feedback"): one for one in following if one._parameters["weight"] is weight}
            if tied:
                lookup = Lookup(list(tied.values()))
                handles.append(module.register_forward_pre_hook(lookup.begin))
                handles.append(module.register_forward_hook(lookup.end, always_call=True))
    return handles


class _Followed(Function):
    """A view of weights, whose gradient comes to feedback that follows them as well."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(weight: Tensor, feedback: Tensor, synapse: Synapse) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.synapse = inputs[2]

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (gradient,), own, synapse = gradients, None, ctx.synapse
        if ctx.needs_input_grad[1] and synapse.sends_back:
            own = synapse.connection.increment(gradient)
            mask = synapse._buffers.get("feedback_mask")
            own = own if mask is None else own.to_dense() * mask
        return gradient, own, None


class _FollowedUnderTransform(_Followed):
    """The compiler takes no Function that has tangents."""

    @staticmethod
    @override
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        return None if tangents[0] is None else tangents[0].view_as(tangents[0])


def _followed(weight: Tensor, feedback: Tensor, synapse: Synapse) -> Tensor:
    if torch.compiler.is_exporting():
        return weight + silent(feedback) if synapse.training and synapse.connection.exports else weight
    function = _FollowedUnderTransform if transforming() else _Followed
    return function.apply(weight, feedback, synapse)  # type: ignore[return-value]
