"""Backpropagation through a learner's synapses, for true signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from apical.learner import Learner
from apical.pathways.layer_wise import LayerWise
from apical.plasticity import Transport


@contextmanager
def backpropagating(learner: Learner) -> Iterator[None]:
    """While open, the model teaches its synapses by backpropagation through all its weights."""
    held = [
        (s, {k: vars(s)[k] for k in ("pathway", "plasticity", "sends_back") if k in vars(s)})
        for s in learner.synapses.values()
    ]
    muted = learner._wiring.muted
    learner._wiring.muted = True
    try:
        for synapse, _ in held:
            vars(synapse).update(pathway=LayerWise(), plasticity=Transport(), sends_back=True)
        yield
    finally:
        learner._wiring.muted = muted
        for synapse, own in held:
            vars(synapse).pop("sends_back", None)
            vars(synapse).update(own)
