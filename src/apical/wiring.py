"""Taps and the broadcast node: the direct pathway as edges of autograd's graph.

During a forward pass of the whole model each cut leaves a tap. At its end the output passes through one node that has an edge
to every tap, so ``loss.backward()`` delivers the output error e through the feedback D of each tap, and autograd does the
rest between a tap and the synapse before it: activations, pooling, dropout, normalization, residual sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge

from apical.outputs import Which, pick, substitute
from apical.recycle import Recycler

if TYPE_CHECKING:
    from apical.episode import Pass
    from apical.local import Updates
    from apical.pathway import Pathway
    from apical.plasticity import Plasticity
    from apical.synapse import Synapse


@dataclass
class Tap:
    """A place where a teaching signal enters: activity x [N, *features] and feedback D [outputs, *features] of its owner."""

    owner: nn.Module
    label: str
    plasticity: Plasticity
    x: Tensor | None
    feedback: Tensor | None
    before: GradientEdge | None = None
    """Where the output of the synapse called before lies in the graph, for chained pathways."""


def carry(e: Float[Tensor, "n outputs"], D: Tensor, x: Tensor) -> Tensor:
    """Teaching signal e D at a tap, shaped and laid out like its activity x."""
    if D.dtype != e.dtype:
        D = D.to(e.dtype)
    if D.dim() == 2:
        return torch.mm(e, D)
    if D.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        n, channels, height, width = x.shape
        return torch.mm(e, D.permute(0, 2, 3, 1).flatten(1)).view(n, height, width, channels).permute(0, 3, 1, 2)
    return torch.mm(e, D.flatten(1)).view(x.shape)


class _Broadcast(torch.autograd.Function):
    """Forward: the output, unchanged. Backward: the output's error to the output, and its share to every tap."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, pathway: Pathway, taps: list[Tap], *edges: Tensor) -> Tensor:
        ctx.pathway, ctx.taps = pathway, taps
        ctx.save_for_backward(*edges)
        for tap in taps:
            tap.x = tap.feedback = None  # Autograd alone keeps them, and lets them go after the backward.
        # Not a view: the model's output may be changed in place.
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        taps: list[Tap] = ctx.taps
        edges = ctx.saved_tensors
        n = len(taps)
        xs, feedbacks, weights = edges[:n], edges[n : 2 * n], edges[2 * n :]
        error = e if e.dim() == 2 else e.reshape(len(e), -1)
        signals = ctx.pathway.signals(error, taps, xs, feedbacks, weights)
        increments: list[Tensor | None] = [None] * len(taps)
        for i, (tap, x, D) in enumerate(zip(taps, xs, feedbacks, strict=True)):
            weight = tap.owner._parameters.get("weight")
            frozen = weight is not None and not weight.requires_grad
            if ctx.needs_input_grad[3 + len(taps) + i] and not frozen:
                product = torch.mm(error.t(), x.flatten(1).to(error.dtype))
                increments[i] = tap.plasticity.increment(product.view(D.shape))
        return e, None, None, *signals, *increments, *(None for _ in weights)


class Wiring:
    """What the synapses of one learner share: the taps of the forward pass that is going on."""

    def __init__(self, pathway: Pathway, output: Which = None) -> None:
        self.pathway = pathway
        self.output = output
        self.taps: list[Tap] | None = None
        self.last_output: GradientEdge | None = None
        self.muted = False
        self.memory = Recycler()
        self.local: Updates | None = None
        """Where synapses bring their updates, if an optimizer applies them in the backward pass."""
        self.current: Pass | None = None
        """The pass of the whole model that is being recorded for a phase of its own, while it is open."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "taps": None, "last_output": None, "current": None, "local": None}

    def begin(self) -> None:
        """Open a forward pass of the whole model."""
        self.taps = [] if torch.is_grad_enabled() and not self.muted else None
        self.last_output = None

    def tap(self, owner: nn.Module, label: str, plasticity: Plasticity, x: Tensor) -> None:
        """Leave x, the activity at `owner`, as a tap."""
        if self.taps is None:
            if torch._C._current_graph_task_id() != -1:
                return  # Activation checkpointing computes the pass again inside the backward; the taps are there already.
            raise RuntimeError(
                f"'{label}' was called on its own, but a {self.pathway.name} teaching signal comes from the output of the "
                "whole model: call the model that was given to apical.attach, or attach to the part you call"
            )
        if not x.requires_grad:
            return
        feedback = plasticity.weight(owner) if getattr(owner, "sends_back", True) else None
        chained = self.pathway.chained and bool(self.taps)
        if feedback is None and not chained:
            raise RuntimeError(
                f"a gradient is asked for at the input of '{label}', but example_input showed no signal to carry there; "
                "attach with an example_input that goes the same way through the model"
            )
        if feedback is not None and x.shape[1:] != feedback.shape[1:]:
            raise RuntimeError(
                f"activity at '{label}' has shape {list(x.shape)}, but its direct feedback was made for "
                f"[N, {', '.join(map(str, feedback.shape[1:]))}]; attach with an example_input of the size you train on"
            )
        self.taps.append(Tap(owner, label, plasticity, x, feedback, self.last_output))

    def see_output(self, synapse: Synapse, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook of every synapse of a chained pathway."""
        if self.taps is not None and output.requires_grad:
            # The edge, not the tensor: what follows may change that in place.
            self.last_output = get_gradient_edge(output)

    def refuse_without_graph(self, label: str, x: Tensor) -> None:
        """A synapse was called without a graph inside a pass that has one: its taps would be lost, and it would not learn."""
        if self.taps is not None and x.requires_grad:
            raise RuntimeError(
                f"'{label}' is computed under no_grad inside a forward pass that learns by a {self.pathway.name} pathway; "
                "for activation checkpointing use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )

    def end(self, output: Any) -> Any:
        """Close the pass: the model's output, with the tensor that carries the error connected to every tap."""
        taps, self.taps, self.last_output = self.taps, None, None
        if not taps or output is None:  # None: the forward pass raised an error.
            return output
        tensor = pick(output, self.output)
        outputs = tensor[0].numel() if len(tensor) else None
        for tap in taps:
            assert tap.x is not None
            if len(tap.x) != len(tensor):
                raise RuntimeError(
                    f"activity at '{tap.label}' has {len(tap.x)} rows but the output has {len(tensor)}; a direct signal needs "
                    "the batch in the first dimension throughout (name whole blocks with at=[...])"
                )
            if tap.feedback is not None and outputs not in (None, len(tap.feedback)):
                raise RuntimeError(
                    f"the model's output has {outputs} values per sample, but the direct feedback of '{tap.label}' was made "
                    f"for {len(tap.feedback)}; attach with an example_input of the size you train on"
                )
        weights = [tap.owner.weight for tap in taps] if self.pathway.chained else []
        edges = (*(tap.x for tap in taps), *(tap.feedback for tap in taps), *weights)
        connected = _Broadcast.apply(tensor, self.pathway, taps, *edges)
        return substitute(output, tensor, connected)
