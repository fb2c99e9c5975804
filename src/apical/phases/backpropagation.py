"""Backpropagation through a learner's synapses, for true signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apical.pathways.layer_wise import LayerWise
from apical.plasticity.transport import Transport

if TYPE_CHECKING:
    from apical.learner import Learner


@contextmanager
def backpropagating(learner: Learner) -> Iterator[None]:
    """While open, the model teaches its synapses by backpropagation through all its weights."""
    held = [(s, s.pathway, s.plasticity, s.whole_pass, s.sends_back) for s in learner.synapses.values()]
    muted = [one.muted for one in learner.passes]
    for one in learner.passes:
        one.muted = True
    try:
        for synapse, *_ in held:
            synapse.pathway, synapse.plasticity, synapse.whole_pass, synapse.sends_back = (
                LayerWise(),
                Transport(),
                None,
                True,
            )
        yield
    finally:
        for one, before in zip(learner.passes, muted, strict=True):
            one.muted = before
        for synapse, pathway, plasticity, source, sends_back in held:
            synapse.pathway, synapse.plasticity = pathway, plasticity
            synapse.whole_pass, synapse.sends_back = source, sends_back
