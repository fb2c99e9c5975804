"""The autograd Function of all synapses: forward transmits, backward feeds back and takes Hebbian products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse


class SynapseFunction(Function):
    """Forward: transmit. Backward: feed_back for the input, hebbian for the weights and for Hebbian feedback."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor | None,
        synapse: Synapse,
        geometry: Geometry,
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            # Cast by hand: autocast's own cache would keep casts that were made without a graph.
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, feedback if need_x else None)
        current = synapse.wiring.current
        ctx.call = current.call(synapse.label) if current is not None and synapse.plasticity.listens else None
        local = synapse.wiring.local
        ctx.local = local.expect(synapse) if local is not None and need_weight else None
        ctx.synapse, ctx.geometry, ctx.shape = synapse, geometry, x.shape
        return synapse.transmit(x, weight, bias, geometry)

    # Not `once_differentiable`: its wrapper takes as long as a small layer's product.
    @staticmethod
    @override
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "create_graph=True asks for the gradient of an update, but a rule's update is no gradient of a loss; "
                "detach the learner for second derivatives"
            )
        x, feedback = ctx.saved_tensors
        need_x, need_weight, need_bias, need_feedback = ctx.needs_input_grad[:4]
        synapse: Synapse = ctx.synapse
        gain = 1.0
        if need_x and feedback is not None:
            plasticity = synapse.plasticity
            if plasticity.computes:
                memory = synapse.memory("feedback", feedback) if synapse.large else None
                feedback, gain = plasticity.resolved(synapse, feedback, memory), plasticity.gain(synapse)
            if feedback.dtype != delta.dtype:
                feedback = feedback.to(delta.dtype)
        local = ctx.local
        # A product that can be added to the weights in place is not made here.
        makes = need_weight and (local is None or not (synapse.fuses and delta.dim() == 2))
        signal, product, bias = synapse.respond(
            x, delta, feedback if need_x else None, ctx.shape, ctx.geometry, makes, need_bias
        )
        if gain != 1 and signal is not None:
            signal = signal.mul_(gain)
        if local is not None:
            # After the signal, which belongs to the weights as they were.
            bias = local.take(synapse, x, delta, product, bias, need_feedback)
            product = None
        if ctx.call is not None:
            # Aliases, so that counts of who holds the memory tell of anybody else.
            ctx.call.hear(delta, None if signal is None else signal.detach(), ctx.geometry)
        # Feedback follows the weights: it stands still where they are frozen.
        own = synapse.plasticity.increment(product) if need_feedback and need_weight else None
        if synapse.connectivity is not None:
            product, own = synapse.thin(product, own)
        if (
            own is not None
            and own is product
            and synapse.large
            and (memory := synapse.memory("increment", own)) is not None
        ):
            # Autograd would copy a gradient that two parameters share; into fresh memory, at that.
            own = memory.copy_(own)
        return signal, product, bias, own, None, None


_quick: dict[type[Function], Callable[..., Any]] = {}


def apply(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, without what that does for functorch and for default arguments alone.

    Those few lines of Python take as long as a small layer's product.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply
    found = _quick.get(function)
    if found is None:
        found = _quick[function] = super(Function, function).apply  # type: ignore[misc]
    return found
