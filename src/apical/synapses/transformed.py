"""The synapse under PyTorch's function transforms (`torch.func`) and forward-mode differentiation.

Transforms want another form of autograd Function, which takes a quarter longer on a small layer; so there are two, and this one
is used only where a transform is at work. Nothing here moves weights, records calls or draws noise: what is transformed is to be
a function of its arguments.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch.autograd import Function, forward_ad
from typing_extensions import override

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse

SECOND = (
    "asks for the gradient of an update, but a rule's update is no gradient of a loss; "
    "detach the learner for second derivatives"
)


def transforming() -> bool:
    """Whether a function transform is at work, or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def compiling() -> bool:
    """Whether this is traced, to be compiled or exported.

    `torch.compiler.is_compiling` tells so in all threads while one of them compiles.
    """
    return torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting()


def within_compiled() -> bool:
    """Whether compiled code is going on, of which this part runs as it is: after a graph break, or too many recompilations."""
    return get_eval_frame_callback() is not None


class _Once(Function):
    """Identity on an update, or on a tangent: refuses to be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(update: Tensor) -> Tensor:
        return update.clone()

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"a second derivative {SECOND}")

    jvp = backward


def once(update: Tensor | None) -> Tensor | None:
    """`update`, which can't be differentiated again."""
    return None if update is None else _Once.apply(update)  # type: ignore[return-value]


class _Cut(Function):
    """Identity that no signal crosses backward. Unlike `detach`, it lets a tangent through."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    @override
    def backward(ctx: Any, delta: Tensor) -> None:
        return None

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor | None) -> Tensor | None:
        return once(tangent)


def cut(x: Tensor) -> Tensor:
    """`x` for a synapse that sends no signal back, under a transform."""
    return _Cut.apply(x)  # type: ignore[return-value]


class TransformedSynapse(Function):
    """The node of one synapse's call under a transform; like `SynapseFunction`, but a function of its arguments alone."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor | None,
        synapse: Synapse,
        geometry: Geometry,
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return synapse.transmit(x, weight, bias, geometry)

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, feedback, ctx.synapse, ctx.geometry = inputs
        # The same for both: vmap keeps one list of which dimensions are the batch's.
        ctx.save_for_backward(x, weight, feedback)
        ctx.save_for_forward(x, weight, feedback)
        ctx.dtype, ctx.shape = output.dtype, x.shape

    @staticmethod
    @override
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        x, _, feedback = ctx.saved_tensors
        need_x, need_weight, need_bias, need_feedback = ctx.needs_input_grad[:4]
        synapse: Synapse = ctx.synapse
        connection = synapse.connection
        if not need_x:
            feedback = None
        elif feedback is not None:
            if connection.resolve is not None:
                feedback = synapse.resolved(feedback, reuse=False)
            feedback = feedback.to(delta.dtype)
        subspace = synapse.subspace
        respond = synapse.respond if subspace is None else partial(subspace.respond, synapse)
        signal, product, bias = respond(
            x.to(delta.dtype), delta, feedback, ctx.shape, ctx.geometry, need_weight, need_bias
        )
        if connection.gain != 1 and signal is not None:
            signal = signal * connection.gain
        own = None
        if need_feedback and need_weight and connection.increment is not None:
            own = connection.increment(product)
        if synapse.sparse:
            forth, back = synapse._buffers.get("weight_mask"), synapse._buffers.get("feedback_mask")
            own = own if own is None or back is None else own * back
            product = product if product is None or forth is None else product * forth
        return once(signal), once(product), once(bias), once(own), None, None

    @staticmethod
    @override
    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        x, weight, _ = ctx.saved_tensors
        synapse: Synapse = ctx.synapse
        dx, dweight, dbias = (None if t is None else t.to(ctx.dtype) for t in tangents[:3])
        parts = []
        if dx is not None:
            parts.append(synapse.transmit(dx, weight.to(ctx.dtype), None, ctx.geometry))
        if dweight is not None or dbias is not None:
            dweight = torch.zeros_like(weight, dtype=ctx.dtype) if dweight is None else dweight
            parts.append(synapse.transmit(x.to(ctx.dtype), dweight, dbias, ctx.geometry))
        return once(torch.stack(parts).sum(0)) if parts else None


def transformed(*inputs: Any) -> Tensor:
    """A synapse's output under a transform."""
    # A copy, because vmap's is a view, which the network may not change in place.
    return TransformedSynapse.apply(*inputs).clone()  # type: ignore[union-attr]
