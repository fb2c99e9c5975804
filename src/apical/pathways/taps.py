"""Taps and the broadcast node: the direct pathway as edges of autograd's graph.

During a forward pass of the whole model each cut leaves a tap, a node of autograd's graph. At the end the output passes through
one more node with an edge to every tap: ``loss.backward()`` leaves the output's error e there, and each tap makes its signal e D
when autograd comes by. Autograd does the rest between a tap and the synapse before it: activations, pooling, dropout,
normalization, residual sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from apical.distributed import in_shards
from apical.nested import Which, pick, substitute
from apical.pathways.base import WholePass
from apical.pathways.checkpointing import graph_comes_later
from apical.pathways.signals import (
    Enter,
    FusedTap,
    NodeTap,
    OutputError,
    Spread,
    Tap,
    Traced,
    exported_output,
    increment,
    signal_at,
)
from apical.synapses import native
from apical.synapses.function import apply
from apical.synapses.storage import PROJECTION, form_of
from apical.synapses.synapse import Synapse
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.plasticity.base import Plasticity

SMALL = 2**16
"""Values of an activity up to which its signal is made together with the output's error."""


Swift = tuple[Synapse, Tensor, Tensor]
"""What a `FusedTap` of a synapse is made of, where C++ can do with that: the synapse, x and D."""


class _Broadcast(Function):
    """Identity on the network's output.

    In the backward pass it stores the output's error e, returns e D at once for fused taps, and an empty tensor for each other
    one, which makes autograd visit it.
    """

    @staticmethod
    @override
    def forward(ctx: Any, output: Tensor, error: OutputError, taps: list[FusedTap], *edges: Tensor) -> Tensor:
        ctx.error, ctx.taps, n = error, taps, len(taps)
        if taps:
            learns = ctx.needs_input_grad[3 + n : 3 + 2 * n]
            ctx.save_for_backward(
                *(x if own else None for x, own in zip(edges, learns, strict=False)), *edges[n : 2 * n]
            )
            for tap in taps:
                tap.x = tap.D = None  # Autograd alone keeps them, and lets them go after the backward.
        # Not a view: the model's output may be changed in place.
        return output.clone()

    @staticmethod
    @override
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        ctx.error.take(e)
        n = len(ctx.taps)
        signals, increments = [], []
        if n:
            kept = ctx.saved_tensors
            for tap, x, D in zip(ctx.taps, kept, kept[n:], strict=False):
                signals.append(signal_at(tap.owner, ctx.error, D, tap.shape))
                increments.append(None if x is None else increment(tap.owner, tap.plasticity, D, x, ctx.error))
        word = e.new_empty(0)
        return e, None, None, *signals, *increments, *(word for _ in ctx.needs_input_grad[3 + 2 * n :])


class Taps(WholePass):
    """Where the direct signals of one learner enter in the forward pass that is going on.

    Args:
        name: of the pathway. output: which tensor of the model's output the loss is made of.
        copies: how many networks lie side by side. plain: whether the rows of the error are what all taps hear.
    """

    def __init__(self, name: str, output: Which, copies: int, *, plain: bool = True) -> None:
        super().__init__(f"a {name} teaching signal comes from the output of the whole model")
        self.name, self.output, self.copies, self.plain = name, output, copies, plain
        self.shared: Tensor | None = None
        """The one matrix of all taps."""
        self.taps: list[Tap | Swift] = []
        self.error = OutputError(copies)
        self.swift: Any = None
        """What leaves and joins taps in C++, in a pass that is an ordinary one."""
        self.transformed = self.exporting = self.traced = False
        """Whether the pass is made under a function transform, to be exported, or to be compiled."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "taps": [], "error": OutputError(self.copies), "swift": None, "shared": None}

    def follow_synapse(self, synapse: Synapse) -> Iterable[RemovableHandle]:
        """Put hooks on a synapse that has taps here."""
        return ()

    @override
    def start(self) -> None:
        self.taps, self.error = [], OutputError(self.copies)
        self.transformed, self.exporting = transforming(), torch.compiler.is_exporting()
        self.traced = torch.compiler.is_dynamo_compiling() and not self.exporting
        self.shared = None
        plain = self.plain and self.copies == 1 and not (self.transformed or self.exporting)
        self.swift = native.taps() if plain else None

    def cut(self, synapse: Synapse, x: Tensor) -> Tensor | None:
        """The activity at a synapse, cut from its graph and left as a tap where it has one; None where `leave` has to do it."""
        if self.swift is None or torch.compiler.is_compiling():  # Function by function around a graph break, too.
            return None
        if not self.open or self.thread != get_ident() or type(x) is not Tensor:
            return None
        if not x.requires_grad:
            return x.detach()
        weight = synapse._parameters.get("weight")
        if not (synapse.fuses and synapse.sends_back) or weight is None or not weight.requires_grad:
            return None
        D = synapse.plasticity.keeps(synapse)
        if D is None:
            return None
        cut = self.swift.tap(x, D, SMALL)
        if cut is not None:
            self.taps.append((synapse, x, D))
        return cut

    def leave(self, owner: nn.Module, label: str, plasticity: Plasticity, x: Tensor) -> None:
        """Leave x, the activity at `owner`, as a tap."""
        again = self.within(label)
        # Under a transform a tensor does not tell whether it has a graph.
        if not x.requires_grad and not self.transformed:
            return
        feedback = plasticity.keeps(owner) if not isinstance(owner, Synapse) or owner.sends_back else None
        if feedback is None and not x.requires_grad:
            return
        if feedback is None and not self.passes_through(again):
            raise RuntimeError(
                f"a gradient is asked for at the input of '{label}', but example_input, which passes in eval mode, showed no "
                "signal to carry there; attach with an example_input that goes the same way through the model (and requires a "
                "gradient, if inputs do) or, for a layer that only training uses, with a layer-wise rule of its own: "
                f"{{'': ..., '{label}': 'fa'}}"
            )
        form = form_of(owner)
        outputs = None if feedback is None else (form.outputs if form else feedback.shape[0]) * self.copies
        if feedback is not None:
            if (wanted := form.refusal(x.shape) if form else _unlike(x, feedback)) is not None:
                raise RuntimeError(
                    f"activity at '{label}' has shape {list(x.shape)}, but its direct feedback was made for {wanted}; attach "
                    "with an example_input of the size you train on"
                )
            if form is not None:
                feedback = self._common(owner, feedback)
        tap = self.made(Tap(owner, label, x.shape[: self.error.lead], outputs, plasticity), x, feedback)
        if self.open:
            self.taps.append(tap)

    def _common(self, owner: nn.Module, feedback: Tensor) -> Tensor:
        """What an owner keeps of its feedback, once what all have in common is one tensor again: a move or a cast makes many."""
        form, error, own = form_of(owner), self.error, owner._buffers
        assert form is not None
        error.lead, P = form.lead, own.get(PROJECTION)
        tied = not torch.compiler.is_compiling() and not self.transformed
        if P is not None and P is not error.projection:
            if error.projection is None:
                error.projection = P
            elif tied:
                own[PROJECTION] = error.projection
        if form.shared and not tied:
            return feedback.detach()  # Dynamo wants arguments of a node that are not the same tensor.
        if form.shared and feedback is not self.shared:
            if self.shared is None:
                self.shared = feedback
            own["feedback"] = feedback = self.shared
        return feedback

    def passes_through(self, again: bool) -> bool:
        """Whether a signal may come to a tap without feedback of its own."""
        return False

    def made(self, tap: Tap, x: Tensor, feedback: Tensor | None) -> Tap:
        """The tap as it stands in the graph."""
        facts = (tap.owner, tap.label, tap.rows, tap.outputs, tap.plasticity)
        if self.transformed or self.exporting or self.traced:
            # A copy, whose place in the graph stays when x is changed in place.
            return FusedTap(*facts, x.clone(), feedback, x.shape)
        if self._joins(tap.owner, x):
            return FusedTap(*facts, x, feedback, x.shape)
        # Activation checkpointing compares the number of saved tensors, so a pass computed again creates the node too.
        return NodeTap(*facts, apply(Enter)(x, feedback, tap.owner, tap.plasticity, self.error))  # type: ignore[arg-type]

    def _joins(self, owner: nn.Module, x: Tensor) -> bool:
        """Whether the signal at a tap may be made together with the output's error, rather than when autograd comes by.

        That saves a node, which is much for a small layer; the memory it takes meanwhile is little for a small layer. The
        tap's place in the graph is read when the pass ends: nothing may have changed x by then, and the synapse keeps x itself,
        of which autograd then makes sure.
        """
        if x.dim() != 2 or x.numel() > SMALL or self.copies > 1 or torch.is_autocast_enabled(x.device.type):
            return False
        return isinstance(owner, Synapse) and owner.fuses and owner.weight.requires_grad

    @override
    def call_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        if self.open and x.requires_grad and self.mine and graph_comes_later():
            raise RuntimeError(
                f"'{synapse.label}' is computed without a graph, by reentrant activation checkpointing, inside a forward pass "
                f"that learns by a {self.name} pathway; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )

    @override
    def finish(self, module: nn.Module, output: Any) -> Any:
        """The model's output, with the tensor that carries the error connected to every tap."""
        left, self.taps = self.taps, []
        if not left or output is None:  # None: the forward pass raised an error.
            return output
        tensor = pick(output, self.output)
        if self.swift is not None and type(tensor) is Tensor and not torch.compiler.is_compiling():
            joined = self.swift.join(tensor, left)
            if joined is not None:
                return joined if tensor is output else substitute(output, tensor, joined)
        taps = [self._whole(*one) if isinstance(one, tuple) else one for one in left]
        self._check(taps, tensor)
        if self.exporting:
            if not module.training:
                return output
            return substitute(output, tensor, exported_output(tensor, taps, self.name, self.error))
        fused, edges = self.edges(taps)
        if self.transformed or self.traced:
            node = Spread if self.transformed else Traced
            P = [] if self.error.projection is None else [self.error.projection]
            return substitute(output, tensor, node.apply(tensor, fused, self.copies, self.error.lead, *edges, *P))
        return substitute(output, tensor, apply(_Broadcast)(tensor, self.error, fused, *edges))

    def _whole(self, owner: Synapse, x: Tensor, D: Tensor) -> FusedTap:
        return FusedTap(owner, owner.label, x.shape[:1], D.shape[0] * self.copies, owner.plasticity, x, D, x.shape)

    def _check(self, taps: Sequence[Tap], output: Tensor) -> None:
        rows = output.shape[: self.error.lead]
        outputs = output.shape[len(rows) :].numel() if rows.numel() else None
        for tap in taps:
            if tap.rows != rows:
                raise RuntimeError(
                    f"activity at '{tap.label}' has {_by(tap.rows)} rows but the output has {_by(rows)}; a direct signal needs "
                    "the batch in the first dimension throughout (name whole blocks with at=[...])"
                )
            if tap.outputs is not None and outputs not in (None, tap.outputs):
                raise RuntimeError(
                    f"the model's output has {outputs} values per sample, but the direct feedback of '{tap.label}' was made "
                    f"for {tap.outputs}; attach with an example_input of the size you train on"
                )
            feedback = tap.owner._parameters.get("feedback")
            if feedback is not None and in_shards(feedback):
                raise RuntimeError(
                    f"the output's error comes to the feedback of '{tap.label}' before its shards are together; call fully_shard "
                    "on the whole model alone, or on its parts with reshard_after_forward=False"
                )

    def edges(self, taps: Sequence[Tap]) -> tuple[list[FusedTap], list[Any]]:
        """The taps that the broadcast node serves itself, and all tensors that it has an edge to."""
        fused = [tap for tap in taps if isinstance(tap, FusedTap)]
        nodes = [tap.handle for tap in taps if isinstance(tap, NodeTap)]
        return fused, [*(tap.x for tap in fused), *(tap.D for tap in fused), *nodes]


def _unlike(x: Tensor, feedback: Tensor) -> str | None:
    """The shape of the activity that feedback kept in full was made for, in words; None where it is that of x."""
    return None if x.shape[1:] == feedback.shape[1:] else f"[N, {', '.join(map(str, feedback.shape[1:]))}]"


def _by(rows: torch.Size) -> str:
    return " x ".join(map(str, rows))
