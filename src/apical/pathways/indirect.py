"""Indirect feedback: e D enters near the input and travels on through the forward weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import GradientEdge, get_gradient_edge
from typing_extensions import override

from apical.pathways.direct import FromOutput, WholeAtOnce
from apical.pathways.signals import OutputError, carry
from apical.pathways.taps import FusedTap, Tap, Taps
from apical.synapses.function import apply
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner


@dataclass(frozen=True)
class Indirect(FromOutput):
    """Signal e D at the input of the second synapse, then onward through the forward weights (nokland2016 eq. 9).

    Where something else that learns stands in front of the first synapse (normalization, an embedding), e D enters there.

    delta_l = (delta_{l-1} W_l^T) * f'(a_l): each synapse transmits the teaching signal as it transmits activity, so the
    layers between a synapse and the next one have to keep shape, and the synapses have to form one chain.

    >>> import apical
    >>> apical.rule("ifa").pathway
    Indirect()
    """

    name: ClassVar[str] = "indirect"

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x, feedback = super().enter(synapse, x)
        # The chain has to hold through frozen synapses as well.
        return x.requires_grad_(x.is_floating_point()), feedback

    @override
    def install(self, learner: Learner) -> Iterable[RemovableHandle]:
        whole = WholeAtOnce(learner.circuit, "an indirect signal goes through the weights of all layers at once")
        return [*super().install(learner), learner.model.register_forward_pre_hook(whole)]

    @override
    def taps(self, learner: Learner) -> Taps:
        return Chain(self.name, learner.output, learner.copies)


@dataclass(slots=True)
class Link(Tap):
    """A tap of a chain: its activity x and feedback D, and where the output of the synapse called before it lies."""

    x: Tensor | None
    D: Tensor | None
    before: GradientEdge | None


class Chain(Taps):
    """Taps of which each takes its signal from the one before it; the first, from the output's error."""

    last: GradientEdge | None = None
    """Where the output of the synapse called last lies."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "last": None}

    @override
    def follow_synapse(self, synapse: Synapse) -> Iterable[RemovableHandle]:
        return (synapse.register_forward_hook(self.see_output),)

    @override
    def start(self) -> None:
        super().start()
        self.last = self.swift = None
        self.traced = False
        if self.transformed:
            raise RuntimeError(
                "an indirect signal goes through autograd's graph of the whole model, which torch.func and forward-mode "
                "differentiation don't show; use 'dfa' or detach the learner; tangents are right under torch.no_grad()"
            )

    def see_output(self, synapse: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook of every synapse of the chain."""
        if self.open and output.requires_grad:
            # The edge, not the tensor: what follows may change that in place.
            self.last = get_gradient_edge(output)

    @override
    def finish(self, module: nn.Module, output: Any) -> Any:
        self.last = None
        return super().finish(module, output)

    @override
    def passes_through(self, again: bool) -> bool:
        return again or bool(self.taps)

    @override
    def made(self, tap: Tap, x: Tensor, feedback: Tensor | None) -> Tap:
        return Link(tap.owner, tap.label, tap.rows, tap.outputs, tap.plasticity, x, feedback, self.last)

    @override
    def edges(self, taps: Sequence[Tap]) -> tuple[list[FusedTap], list[Any]]:
        links = [tap for tap in taps if isinstance(tap, Link)]
        # Every link of a chain is a synapse; its weight may be a stand-in under torch.func.functional_call.
        weights = [link.owner.weight for link in links]
        xs, feedbacks = [link.x for link in links], [link.D for link in links]
        return [], [apply(_Onward)(self.error, links, *xs, *feedbacks, *weights)]


class _Onward(Function):
    """Backward: the teaching signals at all links of a chain, each made from the one before."""

    @staticmethod
    @override
    def forward(ctx: Any, error: OutputError, links: list[Link], *edges: Tensor) -> Tensor:
        ctx.error, ctx.links = error, links
        ctx.save_for_backward(*edges)
        for link in links:
            link.x = link.D = None  # Autograd alone keeps them, and lets them go after the backward.
        return edges[0].new_empty(0)

    @staticmethod
    @override
    def backward(ctx: Any, nothing: Tensor) -> tuple[Tensor | None, ...]:
        edges, n = ctx.saved_tensors, len(ctx.links)
        signals = _signals(ctx.error.value, ctx.links, edges[:n], edges[n], edges[2 * n :])
        return None, None, *signals, *(None for _ in range(2 * n))


def _signals(
    e: Tensor, links: Sequence[Link], xs: Sequence[Tensor], D: Tensor, weights: Sequence[Tensor]
) -> list[Tensor]:
    """The teaching signal at every link.

    Args:
        e: the output's error [N, outputs]. links: in the order of the forward pass.
        xs: each link's activity, with its graph. D: the first link's feedback. weights: of each link's synapse.
    """
    copies = links[0].owner.copies if isinstance(links[0].owner, Synapse) else 1
    signals = [carry(e, D, xs[0].shape, copies=copies)]
    for here, x, weight, after in zip(links, xs, weights, xs[1:], strict=False):
        # delta at the previous synapse's output: one local step of autograd over what lies between.
        # Before the first synapse there is none where something else that learns stands in front of it.
        delta = signals[-1]
        if here.before is not None:
            (delta,) = torch.autograd.grad(x, here.before, delta, retain_graph=True, allow_unused=True)
        if delta is None:
            raise RuntimeError(
                f"the input of '{here.label}' does not come from the synapse called before it; use 'dfa'"
            )
        synapse = here.owner
        assert isinstance(synapse, Synapse)
        delta, geometry = synapse.prepare(delta)
        signals.append(synapse.transmit(delta, weight.to(delta.dtype), None, geometry).view(after.shape))
    return signals
