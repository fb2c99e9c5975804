"""Taps, and the direct signal at one, e D, with what its feedback learns, e^T x; and the node that makes all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from apical.plasticity.base import Trained
from apical.synapses.exported import say, silent
from apical.synapses.products import product
from apical.synapses.storage import form_of
from apical.synapses.transformed import once

if TYPE_CHECKING:
    from apical.plasticity.base import Plasticity


@dataclass(slots=True)
class Tap:
    """A place where a teaching signal enters.

    Attributes:
        owner: the synapse or block. label: its name. rows: samples of the activity there, and positions that are rows, too.
        outputs: values per row that the output has to have for its feedback; None where it has none.
        plasticity: of its feedback.
    """

    owner: nn.Module
    label: str
    rows: torch.Size
    outputs: int | None
    plasticity: Plasticity


@dataclass(slots=True)
class NodeTap(Tap):
    """A tap with a node of its own in the graph, for which `handle` stands."""

    handle: Tensor


@dataclass(slots=True)
class FusedTap(Tap):
    """A tap whose signal the broadcast node makes: activity x, of `shape`, and feedback D, released once the pass ends."""

    x: Tensor | None
    D: Tensor | None
    shape: torch.Size


class OutputError:
    """The output's error of one forward pass, once its backward pass knows it, as rows that taps multiply with their feedback.

    Attributes:
        value: the rows [N, outputs], or, through a projection, [N, rank]; N counts positions where `lead` is 2.
        lead: how many of the output's dimensions count as the batch. projection: P of feedback D = P Q.
    """

    value: Tensor

    def __init__(self, copies: int, lead: int = 1, projection: Tensor | None = None) -> None:
        self.copies, self.lead, self.projection = copies, lead, projection

    def take(self, e: Tensor) -> None:
        """Take the error, shaped like the output."""
        self.value = rows_of(e, self.lead, self.projection, self.copies)


def rows_of(e: Tensor, lead: int, P: Tensor | None, copies: int) -> Float[Tensor, "n k"]:
    """The rows of an error shaped like the output, whose first `lead` dimensions count as the batch: e, or e P."""
    rows = e.unsqueeze(1) if e.dim() == 1 else e.flatten(0, lead - 1).flatten(1)
    if P is None:
        return rows
    P = P.to(rows.dtype)
    if copies == 1:
        return product(rows, P)
    own = rows.unflatten(1, (copies, -1)).transpose(0, 1)
    return torch.bmm(own, P.unflatten(0, (copies, -1))).transpose(0, 1).flatten(1)


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
    e, form = error.value, form_of(owner)
    rows = x.flatten(1) if form is None else form.gather(x)
    increment = plasticity.increment(_hebbian(e, rows.to(e.dtype), error.copies).view(D.shape))
    mask = owner._buffers.get("feedback_mask")
    return increment if increment is None or mask is None else increment * mask


def signal_at(
    owner: nn.Module, error: OutputError, D: Tensor, shape: torch.Size, *, channels_last: bool = False
) -> Tensor:
    """The signal at activity of `shape`, from what its owner keeps for the feedback."""
    form = form_of(owner)
    if form is None:
        return carry(error.value, D, shape, channels_last=channels_last, copies=error.copies)
    return form.carry(error.value, D, shape, channels_last=channels_last)


class Enter(Function):
    """Backward: the teaching signal at one tap, made when autograd comes by, so that no two of them wait at once."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, D: Tensor, owner: nn.Module, plasticity: Plasticity, error: OutputError) -> Tensor:
        ctx.owner, ctx.plasticity, ctx.error, ctx.shape = owner, plasticity, error, x.shape
        ctx.channels_last = (
            x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        )
        ctx.save_for_backward(D, x if ctx.needs_input_grad[1] else None)
        return x.new_empty(0)

    @staticmethod
    @override
    def backward(ctx: Any, nothing: Tensor) -> tuple[Tensor | None, ...]:
        D, x = ctx.saved_tensors
        own = None if x is None else increment(ctx.owner, ctx.plasticity, D, x, ctx.error)
        signal = None
        if ctx.needs_input_grad[0]:
            signal = signal_at(ctx.owner, ctx.error, D, ctx.shape, channels_last=ctx.channels_last)
        return signal, own, None, None, None


def exported_output(output: Tensor, taps: Sequence[Any], pathway: str, error: OutputError) -> Tensor:
    """The model's output in `torch.export`: the same values, whose gradient reaches every tap as e D by plain operations."""
    for tap in taps:
        connection = tap.plasticity.connection(tap.owner)
        if not (connection.exports and pathway == "direct"):
            say(pathway, tap.plasticity.name, tap.label)
            continue
        form = form_of(tap.owner)
        D = tap.D.flatten(1) if form is None else form.weights(tap.D).flatten(1)
        x, mask = tap.x.flatten(1) if form is None else form.gather(tap.x), tap.owner._buffers.get("feedback_mask")
        if connection.increment is None:
            D = D.detach()
        elif mask is not None:
            D = D * mask.flatten(1)
        y = x @ D.t()
        y = y if error.projection is None else y @ error.projection.t()
        output = output + silent(y).view_as(output)
    return output


def _spread(
    ctx: Any, e: Tensor, shapes: Sequence[torch.Size], xs: Sequence[Tensor | None], kept: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The signals at all taps of a node that makes them at once, and what their feedback learns, where there is an x.

    kept: the feedback of every tap, and a projection that all share, if there is one.
    """
    Ds, P = kept[: len(shapes)], kept[len(shapes) :]
    error = OutputError(ctx.copies, ctx.lead, P[0] if P else None)
    error.take(e)
    signals = [signal_at(tap.owner, error, D, shape) for tap, D, shape in zip(ctx.taps, Ds, shapes, strict=True)]
    increments = [
        None if x is None else increment(tap.owner, tap.plasticity, D, x, error)
        for tap, x, D in zip(ctx.taps, xs, Ds, strict=True)
    ]
    return signals, increments


class Traced(Function):
    """The broadcast node in compiled code, which has no place for an error that many nodes wait for: it makes all signals."""

    @staticmethod
    @override
    def forward(ctx: Any, output: Tensor, taps: list[Any], copies: int, lead: int, *edges: Tensor) -> Tensor:
        n = len(taps)
        ctx.taps, ctx.copies, ctx.lead, ctx.shapes = taps, copies, lead, [x.shape for x in edges[:n]]
        learns = ctx.needs_input_grad[4 + n : 4 + 2 * n]
        ctx.save_for_backward(*(x if own else None for x, own in zip(edges, learns, strict=False)), *edges[n:])
        return output.clone()

    @staticmethod
    @override
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        kept, n = ctx.saved_tensors, len(ctx.taps)
        signals, increments = _spread(ctx, e, ctx.shapes, kept[:n], kept[n:])
        return e, None, None, None, *signals, *increments, *(None for _ in kept[2 * n :])


class Spread(Function):
    """The broadcast node under a function transform: a function of its arguments alone, which makes all signals at once."""

    generate_vmap_rule = True

    @staticmethod
    @override
    def forward(output: Tensor, taps: list[Any], copies: int, lead: int, *edges: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    @override
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.taps, ctx.copies, ctx.lead, *edges = inputs
        ctx.save_for_backward(*edges)

    @staticmethod
    @override
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        kept, n = ctx.saved_tensors, len(ctx.taps)
        learns = ctx.needs_input_grad[4 + n : 4 + 2 * n]
        xs = [x if own else None for x, own in zip(kept, learns, strict=False)]
        signals, increments = _spread(ctx, e, [x.shape for x in kept[:n]], xs, kept[n:])
        return e, None, None, None, *map(once, signals), *map(once, increments), *(None for _ in kept[2 * n :])

    @staticmethod
    @override
    def jvp(ctx: Any, tangent: Tensor | None, *others: Any) -> Tensor | None:
        return tangent if tangent is None else tangent.clone()
