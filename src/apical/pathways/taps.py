"""Taps and the broadcast node: the direct pathway as edges of autograd's graph.

During a forward pass of the whole model each cut leaves a tap, a node of autograd's graph. At the end the output passes through
one more node with an edge to every tap: ``loss.backward()`` leaves the output's error e there, and each tap makes its signal e D
when autograd comes by. Autograd does the rest between a tap and the synapse before it: activations, pooling, dropout,
normalization, residual sums.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from apical.nested import Which, pick, substitute
from apical.synapses.function import apply
from apical.synapses.memory import Recycler
from apical.synapses.products import product

if TYPE_CHECKING:
    from apical.optim.updates import Updates
    from apical.pathways.base import Pathway
    from apical.phases.recording import Pass
    from apical.plasticity import Plasticity
    from apical.synapses.synapse import Synapse


@dataclass(slots=True)
class Tap:
    """A place where a teaching signal enters, with the feedback D [outputs, *features] of its owner."""

    owner: nn.Module
    label: str
    rows: int
    outputs: int | None
    plasticity: Plasticity
    handle: Tensor | None = None
    """Stands for the tap in the graph, where it has a node of its own."""
    x: Tensor | None = None
    """Where it has none, the activity [N, *features] and D; for chained pathways, also where the output of the synapse called
    before lies."""
    feedback: Tensor | None = None
    before: GradientEdge | None = None


_SMALL = 2**16
"""Values of an activity up to which its signal is made together with the output's error."""


class _Error:
    """The output's error [N, outputs] of one forward pass, once its backward pass knows it."""

    value: Tensor

    def __init__(self, copies: int) -> None:
        self.copies = copies


def carry(
    e: Float[Tensor, "n outputs"], D: Tensor, shape: torch.Size, *, channels_last: bool = False, copies: int = 1
) -> Tensor:
    """Teaching signal e D at a tap, shaped and laid out like its activity; for copies side by side, each one's own."""
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
    """e^T x, shaped like direct feedback [outputs, features]; for copies side by side, each one's own."""
    if copies == 1:
        return product(e.t(), x)
    errors, rows = e.unflatten(1, (copies, -1)), x.unflatten(1, (copies, -1))
    return torch.bmm(errors.permute(1, 2, 0), rows.transpose(0, 1)).transpose(0, 1).flatten(1)


def _learned(owner: nn.Module, plasticity: Plasticity, D: Tensor, x: Tensor, error: _Error) -> Tensor | None:
    """What trainable direct feedback gets for a gradient, from the activity x at its tap."""
    weight = owner._parameters.get("weight")
    if weight is not None and not weight.requires_grad:
        return None
    e = error.value
    increment = plasticity.increment(_hebbian(e, x.flatten(1).to(e.dtype), error.copies).view(D.shape))
    mask = owner._buffers.get("feedback_mask")
    return increment if increment is None or mask is None else increment * mask


class _Enter(torch.autograd.Function):
    """Backward: the teaching signal at one tap, made when autograd comes by, so that no two of them wait at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, D: Tensor, owner: nn.Module, plasticity: Plasticity, error: _Error) -> Tensor:
        ctx.owner, ctx.plasticity, ctx.error, ctx.shape = owner, plasticity, error, x.shape
        ctx.channels_last = (
            D.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        )
        ctx.save_for_backward(D, x if ctx.needs_input_grad[1] else None)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, nothing: Tensor) -> tuple[Tensor | None, ...]:
        D, x = ctx.saved_tensors
        increment = None if x is None else _learned(ctx.owner, ctx.plasticity, D, x, ctx.error)
        signal = None
        if ctx.needs_input_grad[0]:
            signal = carry(ctx.error.value, D, ctx.shape, channels_last=ctx.channels_last, copies=ctx.error.copies)
        return signal, increment, None, None, None


class _Chain(torch.autograd.Function):
    """Backward: the teaching signals at all taps of a chained pathway, each made from the one before."""

    @staticmethod
    def forward(ctx: Any, pathway: Pathway, error: _Error, taps: list[Tap], *edges: Tensor) -> Tensor:
        ctx.pathway, ctx.error, ctx.taps = pathway, error, taps
        ctx.save_for_backward(*edges)
        for tap in taps:
            tap.x = tap.feedback = None  # Autograd alone keeps them, and lets them go after the backward.
        return edges[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, nothing: Tensor) -> tuple[Tensor | None, ...]:
        edges, n = ctx.saved_tensors, len(ctx.taps)
        xs, feedbacks, weights = edges[:n], edges[n : 2 * n], edges[2 * n :]
        signals = ctx.pathway.signals(ctx.error.value, ctx.taps, xs, feedbacks, weights)
        return None, None, None, *signals, *(None for _ in feedbacks), *(None for _ in weights)


class _Broadcast(torch.autograd.Function):
    """Forward: the output, unchanged. Backward: its error to the output, signals to small taps, and word to the others."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, error: _Error, taps: list[Tap], *edges: Tensor) -> Tensor:
        ctx.error, ctx.taps, n = error, taps, len(taps)
        if taps:
            learns = ctx.needs_input_grad[3 + n : 3 + 2 * n]
            ctx.save_for_backward(
                *(x if own else None for x, own in zip(edges, learns, strict=False)), *edges[n : 2 * n]
            )
            for tap in taps:
                tap.x = tap.feedback = None  # Autograd alone keeps them, and lets them go after the backward.
        # Not a view: the model's output may be changed in place.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        ctx.error.value = rows = e.flatten(1) if e.dim() > 1 else e.unsqueeze(1)
        n = len(ctx.taps)
        signals, increments = [], []
        if n:
            kept = ctx.saved_tensors
            for tap, x, D in zip(ctx.taps, kept, kept[n:], strict=False):
                signals.append(carry(rows, D, torch.Size((rows.shape[0], D.shape[1]))))
                increments.append(None if x is None else _learned(tap.owner, tap.plasticity, D, x, ctx.error))
        word = e.new_empty(0)
        return e, None, None, *signals, *increments, *(word for _ in ctx.needs_input_grad[3 + 2 * n :])


def graph_comes_later() -> bool:
    """Whether the forward of an autograd Function is going on, as in reentrant checkpoints, which compute anew with a graph."""
    frame = inspect.currentframe()
    while frame is not None:
        first = frame.f_code.co_varnames[:1]
        if frame.f_code.co_name == "forward" and first and isinstance(frame.f_locals.get(first[0]), FunctionCtx):
            return True
        frame = frame.f_back
    return False


class Wiring:
    """What the synapses of one learner share: the taps of the forward pass that is going on."""

    def __init__(self, pathway: Pathway, output: Which = None, copies: int = 1) -> None:
        self.pathway = pathway
        self.output = output
        self.taps: list[Tap] | None = None
        self.copies = copies
        self.error = _Error(copies)
        self.last_output: GradientEdge | None = None
        self.muted = False
        self.memory = Recycler()
        self.local: Updates | None = None
        """Where synapses bring their updates, if an optimizer applies them in the backward pass."""
        self.current: Pass | None = None
        """The pass of the whole model that is being recorded for a phase of its own, while it is open."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "taps": None,
            "error": _Error(self.copies),
            "last_output": None,
            "current": None,
            "local": None,
        }

    def begin(self) -> None:
        """Open a forward pass of the whole model."""
        self.taps = [] if torch.is_grad_enabled() and not self.muted else None
        self.error = _Error(self.copies)
        self.last_output = None

    def within(self, label: str, reason: str) -> bool:
        """Whether a pass of the whole model is computed again; an error if none is open, for `reason`."""
        # Activation checkpointing computes the pass again inside the backward; the taps are there already.
        again = self.taps is None and torch._C._current_graph_task_id() != -1
        if self.taps is None and not again:
            raise RuntimeError(
                f"'{label}' was called on its own, but {reason}: call the model that was given to apical.attach, or attach to "
                "the part you call"
            )
        return again

    def tap(self, owner: nn.Module, label: str, plasticity: Plasticity, x: Tensor) -> None:
        """Leave x, the activity at `owner`, as a tap."""
        again = self.within(label, f"a {self.pathway.name} teaching signal comes from the output of the whole model")
        if not x.requires_grad:
            return
        feedback = plasticity.weight(owner) if getattr(owner, "sends_back", True) else None
        if feedback is None and not (self.pathway.chained and (again or self.taps)):
            raise RuntimeError(
                f"a gradient is asked for at the input of '{label}', but example_input, which passes in eval mode, showed no "
                "signal to carry there; attach with an example_input that goes the same way through the model (and requires a "
                "gradient, if inputs do) or, for a layer that only training uses, with a layer-wise rule of its own: "
                f"{{'': ..., '{label}': 'fa'}}"
            )
        if feedback is not None and x.shape[1:] != feedback.shape[1:]:
            raise RuntimeError(
                f"activity at '{label}' has shape {list(x.shape)}, but its direct feedback was made for "
                f"[N, {', '.join(map(str, feedback.shape[1:]))}]; attach with an example_input of the size you train on"
            )
        outputs = None if feedback is None else feedback.shape[0] * self.copies
        tap = Tap(owner, label, x.shape[0], outputs, plasticity)
        if self.pathway.chained:
            tap.x, tap.feedback, tap.before = x, feedback, self.last_output
        elif self._joins(owner, x):
            tap.x, tap.feedback = x, feedback
        else:
            # Made again as well: checkpointing counts what is kept for the backward.
            tap.handle = apply(_Enter)(x, feedback, owner, plasticity, self.error)  # type: ignore[assignment]
        if self.taps is not None:
            self.taps.append(tap)

    def _joins(self, owner: nn.Module, x: Tensor) -> bool:
        """Whether the signal at a tap may be made together with the output's error, rather than when autograd comes by.

        That saves a node, which is much for a small layer; the memory it takes meanwhile is little for a small layer. The
        tap's place in the graph is read when the pass ends: nothing may have changed x by then, and the synapse keeps x itself,
        of which autograd then makes sure.
        """
        if x.dim() != 2 or x.numel() > _SMALL or self.copies > 1 or torch.is_autocast_enabled(x.device.type):
            return False
        return getattr(owner, "fuses", False) and owner._parameters["weight"].requires_grad  # type: ignore[union-attr]

    def see_output(self, synapse: Synapse, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook of every synapse of a chained pathway."""
        if self.taps is not None and output.requires_grad:
            # The edge, not the tensor: what follows may change that in place.
            self.last_output = get_gradient_edge(output)

    def enter_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        """Refuse a synapse whose graph comes later: its taps, and what a phase listens for, would be lost."""
        listens = self.current is not None and (synapse.pathway.listens or synapse.plasticity.listens)
        tapped = self.taps is not None and synapse.pathway.wired
        if (tapped or listens) and x.requires_grad and graph_comes_later():
            what = f"by a {synapse.pathway.name} pathway" if tapped else "in a phase of its own"
            raise RuntimeError(
                f"'{synapse.label}' is computed without a graph, by reentrant activation checkpointing, inside a forward pass "
                f"that learns {what}; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        if self.current is not None:
            self.current.count(synapse.label)

    def end(self, output: Any) -> Any:
        """Close the pass: the model's output, with the tensor that carries the error connected to every tap."""
        taps, self.taps, self.last_output = self.taps, None, None
        if not taps or output is None:  # None: the forward pass raised an error.
            return output
        tensor = pick(output, self.output)
        rows = tensor.shape[0]
        outputs = tensor.shape[1:].numel() if rows else None
        for tap in taps:
            if tap.rows != rows:
                raise RuntimeError(
                    f"activity at '{tap.label}' has {tap.rows} rows but the output has {rows}; a direct signal needs "
                    "the batch in the first dimension throughout (name whole blocks with at=[...])"
                )
            if tap.outputs is not None and outputs not in (None, tap.outputs):
                raise RuntimeError(
                    f"the model's output has {outputs} values per sample, but the direct feedback of '{tap.label}' was made "
                    f"for {tap.outputs}; attach with an example_input of the size you train on"
                )
        joined = [tap for tap in taps if tap.handle is None]
        edges = [tap.x for tap in joined] + [tap.feedback for tap in joined]
        if self.pathway.chained:
            weights = [tap.owner.weight for tap in taps]
            joined, edges = [], [apply(_Chain)(self.pathway, self.error, taps, *edges, *weights)]
        elif len(joined) < len(taps):
            edges += [tap.handle for tap in taps if tap.handle is not None]
        output_with_error = apply(_Broadcast)(tensor, self.error, joined, *edges)
        return substitute(output, tensor, output_with_error)  # type: ignore[arg-type]
