"""The direct signal at one place, e D, and what its feedback learns, e^T x; and the node that makes all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from apical.plasticity.base import Trained
from apical.synapses.exported import say, silent
from apical.synapses.products import product
from apical.synapses.transformed import once

if TYPE_CHECKING:
    from apical.plasticity.base import Plasticity


class OutputError:
    """The output's error [N, outputs] of one forward pass, once its backward pass knows it."""

    value: Tensor

    def __init__(self, copies: int) -> None:
        self.copies = copies


def carry(
    e: Float[Tensor, "n outputs"], D: Tensor, shape: torch.Size, *, channels_last: bool = False, copies: int = 1
) -> Tensor:
    """The teaching signal e D at a tap, shaped and laid out like its activity; for copies side by side, each one's own."""
    if D.dtype != e.dtype:
        D = D.to(e.dtype)
    if copies > 1:
        errors, own = (
            e.unflatten(1, (copies, -1)).transpose(0, 1),
            D.flatten(1).unflatten(1, (copies, -1)).transpose(0, 1),
        )
        signal = torch.bmm(errors, own).transpose(0, 1).reshape(shape)
        return signal.contiguous(memory_format=torch.channels_last) if channels_last else signal
    if channels_last:
        n, channels, height, width = shape
        return product(e, D.permute(0, 2, 3, 1).flatten(1)).view(n, height, width, channels).permute(0, 3, 1, 2)
    return product(e, D) if D.dim() == len(shape) == 2 else product(e, D.flatten(1)).view(shape)


def _hebbian(e: Float[Tensor, "n outputs"], x: Float[Tensor, "n features"], copies: int) -> Tensor:
    """The product e^T x, shaped like direct feedback [outputs, features]; for copies side by side, each one's own."""
    if copies == 1:
        return product(e.t(), x)
    errors, rows = e.unflatten(1, (copies, -1)), x.unflatten(1, (copies, -1))
    return torch.bmm(errors.permute(1, 2, 0), rows.transpose(0, 1)).transpose(0, 1).flatten(1)


def increment(owner: nn.Module, plasticity: Plasticity, D: Tensor, x: Tensor, error: OutputError) -> Tensor | None:
    """The gradient of trainable direct feedback, from the activity x at its tap."""
    weight = owner._parameters.get("weight")
    if not isinstance(plasticity, Trained) or (weight is not None and not weight.requires_grad):
        return None
    e = error.value
    increment = plasticity.increment(_hebbian(e, x.flatten(1).to(e.dtype), error.copies).view(D.shape))
    mask = owner._buffers.get("feedback_mask")
    return increment if increment is None or mask is None else increment * mask


def exported_output(output: Tensor, taps: Sequence[Any], pathway: str) -> Tensor:
    """The model's output in `torch.export`: the same values, whose gradient reaches every tap as e D by plain operations."""
    for tap in taps:
        connection = tap.plasticity.connection(tap.owner)
        if not (connection.exports and pathway == "direct"):
            say(pathway, tap.plasticity.name, tap.label)
            continue
        D, mask = tap.D.flatten(1), tap.owner._buffers.get("feedback_mask")
        if connection.increment is None:
            D = D.detach()
        elif mask is not None:
            D = D * mask.flatten(1)
        output = output + silent(tap.x.flatten(1) @ D.t()).view_as(output)
    return output


def _spread(
    ctx: Any, e: Tensor, shapes: Sequence[torch.Size], xs: Sequence[Tensor | None], Ds: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The signals at all taps of a node that makes them at once, and what their feedback learns, where there is an x."""
    error = OutputError(ctx.copies)
    error.value = e.flatten(1) if e.dim() > 1 else e.unsqueeze(1)
    signals = [carry(error.value, D, shape, copies=ctx.copies) for D, shape in zip(Ds, shapes, strict=True)]
    increments = [
        None if x is None else increment(tap.owner, tap.plasticity, D, x, error)
        for tap, x, D in zip(ctx.taps, xs, Ds, strict=True)
    ]
    return signals, increments


class Traced(Function):
    """The broadcast node in compiled code, which has no place for an error that many nodes wait for: it makes all signals."""

    @staticmethod
    @override
    def forward(ctx: Any, output: Tensor, taps: list[Any], copies: int, *edges: Tensor) -> Tensor:
        n = len(taps)
        ctx.taps, ctx.copies, ctx.shapes = taps, copies, [x.shape for x in edges[:n]]
        learns = ctx.needs_input_grad[3 + n :]
        ctx.save_for_backward(*(x if own else None for x, own in zip(edges, learns, strict=False)), *edges[n:])
        return output.clone()

    @staticmethod
    @override
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        kept, n = ctx.saved_tensors, len(ctx.taps)
        signals, increments = _spread(ctx, e, ctx.shapes, kept[:n], kept[n:])
        return e, None, None, *signals, *increments


class Spread(Function):
    """The broadcast node under a function transform: a function of its arguments alone, which makes all signals at once."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(output: Tensor, taps: list[Any], copies: int, *edges: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.taps, ctx.copies, *edges = inputs
        ctx.save_for_backward(*edges)

    @staticmethod
    @override
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        kept, n = ctx.saved_tensors, len(ctx.taps)
        learns = ctx.needs_input_grad[3 + n :]
        xs = [x if own else None for x, own in zip(kept, learns, strict=False)]
        signals, increments = _spread(ctx, e, [x.shape for x in kept[:n]], xs, kept[n:])
        return e, None, None, *map(once, signals), *map(once, increments)

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor | None, *others: Any) -> Tensor | None:
        return tangent if tangent is None else tangent.clone()
