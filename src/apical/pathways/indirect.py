"""Indirect feedback: e D enters near the input and travels on through the forward weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from apical.pathways.direct import Direct
from apical.pathways.taps import carry
from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Indirect(Direct):
    """Signal e D at the input of the second synapse, then onward through the forward weights (nokland2016 eq. 9).

    Where something else that learns stands in front of the first synapse (normalization, an embedding), e D enters there.

    delta_l = (delta_{l-1} W_l^T) * f'(a_l): each synapse transmits the teaching signal as it transmits activity, so the
    layers between a synapse and the next one have to keep shape, and the synapses have to form one chain.
    """

    name: ClassVar[str] = "indirect"
    chained: ClassVar[bool] = True

    @override
    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x, feedback = super().enter(synapse, x)
        # The chain has to hold through frozen synapses as well.
        return x.requires_grad_(x.is_floating_point()), feedback

    @override
    def signals(self, e, taps, xs, feedbacks, weights):
        assert feedbacks[0] is not None
        signals = [carry(e, feedbacks[0], xs[0].shape, copies=taps[0].owner.copies)]  # type: ignore[arg-type]
        for here, x, weight, after in zip(taps, xs, weights, xs[1:], strict=False):
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
