"""The autograd Function of all synapses: forward transmits, backward feeds back and takes Hebbian products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from typing_extensions import override

from apical.synapses.exported import exported
from apical.synapses.transformed import SECOND, transformed

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse


class SynapseFunction(Function):
    """The node of one synapse's call in autograd's graph.

    Forward: `transmit`. Backward: `feed_back` for the input; `hebbian` for the weights, and for feedback that learns with them.
    """

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
        need_x, need_weight = ctx.needs_input_grad[:2]
        circuit = synapse.circuit
        record, updater, ctx.beside, ctx.subspace = circuit.record, circuit.updater, circuit.busy, synapse.subspace
        if updater is None:
            ctx.updater = None
        else:
            ctx.updater = updater.expect(synapse, x if need_x and feedback is not None else None, need_weight)
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            # Cast by hand: autocast's own cache would keep casts that were made without a graph.
            dtype = torch.get_autocast_dtype(x.device.type)
            cast = weight.to(dtype)
            if synapse.connection.signs and dtype == torch.bfloat16 and feedback is not None and not synapse.sparse:
                feedback = cast  # The same signs, in half the memory; of float16 small ones would be 0.
            x, weight, bias = x.to(dtype), cast, None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x if need_weight else None, feedback if need_x else None)
        ctx.call = None if record is None else record.call(synapse)
        ctx.synapse, ctx.geometry, ctx.shape = synapse, geometry, x.shape
        y = synapse.transmit(x, weight, bias, geometry)
        # Of a view, autograd would forbid in-place operations on the output, as F.relu(y, inplace=True).
        return y if torch.compiler.is_compiling() or not y._is_view() else y.data

    # Not `once_differentiable`: its wrapper takes as long as a small layer's product.
    @staticmethod
    @override
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(f"create_graph=True {SECOND}")
        need_x, need_weight, need_bias, need_feedback = ctx.needs_input_grad[:4]
        updater = None if ctx.updater is None else ctx.updater.owner(ctx)
        x, feedback = ctx.saved_tensors
        synapse: Synapse = ctx.synapse
        connection = synapse.connection
        gain = connection.gain
        if synapse.circuit.busy and not ctx.beside:
            synapse.circuit.refuse("the backward pass came to", synapse.label)
        need_feedback = need_feedback and synapse.sends_back  # The first pass may have shown that none is needed.
        try:
            if not need_x:
                feedback = None
            elif feedback is not None:
                if connection.resolve is not None:
                    feedback = synapse.resolved(feedback)
                if (
                    delta.is_cuda
                    and gain != 1
                    and connection.resolve is not None
                    and feedback.numel() < ctx.shape.numel()
                ):
                    feedback, gain = feedback.mul_(gain), 1.0  # A pass over less memory than over the signal.
                if feedback.dtype != delta.dtype:
                    feedback = feedback.to(delta.dtype)
            # A product that can be added to the weights in place is not made here.
            makes = need_weight and (updater is None or not (synapse.fuses and delta.dim() == 2))
            subspace = ctx.subspace
            respond = synapse.respond if subspace is None else partial(subspace.respond, synapse)
            signal, product, bias = respond(x, delta, feedback, ctx.shape, ctx.geometry, makes, need_bias)
            if subspace is not None and feedback is not None and not ctx.beside:
                subspace.follow(synapse, delta)
            if gain != 1 and signal is not None:
                signal = signal.mul_(gain)
            if updater is not None:
                # After the signal, which belongs to the weights as they were.
                bias = updater.take(synapse, x, delta, product, bias, need_feedback)
                product = None
            if ctx.call is not None:
                # Aliases, so that counts of who holds the memory tell of anybody else. What feedback regresses on is delta B.
                heard = None if signal is None or subspace is not None else signal.detach()
                ctx.call.hear(delta, heard, ctx.geometry)
            own = None
            if need_feedback and need_weight and connection.increment is not None:
                # Feedback follows the weights: it stands still where they are frozen.
                own = connection.increment(product)
            if synapse.sparse:
                product, own = synapse.thin(product, own)
            if own is not None and own is product and synapse.large:
                # Autograd would copy a gradient that two parameters share; into fresh memory, at that.
                memory = synapse.memory("increment", own)
                own = own if memory is None else memory.copy_(own)
        except RuntimeError:
            synapse.circuit.examine()  # Shapes that no longer fit have a better reason than the product's.
            raise
        return signal, product, bias, own, None, None


_quick: dict[type[Function], Callable[..., Any]] = {}


def apply(function: type[Function], synaptic: bool = False) -> Callable[..., Any]:
    """A faster `function.apply`; for a synapse, what stands in for it under transforms and in exports.

    PyTorch's own binds default arguments and asks functorch on every call, which takes as long as a small layer's product.
    """
    if torch.compiler.is_compiling():
        return exported if synaptic and torch.compiler.is_exporting() else function.apply
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return transformed if synaptic else function.apply
    found = _quick.get(function)
    if found is None:
        found = _quick[function] = super(Function, function).apply  # type: ignore[misc]
    return found
