"""Backpropagation through a learner's synapses, for true signals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

from apical.pathways.layer_wise import LayerWise
from apical.plasticity.transport import Transport
from apical.synapses.circuit import Connection

if TYPE_CHECKING:
    from apical.learner import Learner

_ROLE: dict[str, Any] = {
    "pathway": LayerWise(),
    "plasticity": Transport(),
    "connection": Connection(),
    "whole_pass": None,
    "sends_back": True,
    "native": False,
}
"""Attributes by which a synapse sends its error back through its own weights."""


@contextmanager
def backpropagating(learner: Learner) -> Iterator[None]:
    """While open, the model teaches its synapses by backpropagation through all its weights."""
    # By way of dictionaries: a phase does this every step, and nn.Module's assignment is slow enough to show.
    held = [(vars(s), {name: vars(s)[name] for name in _ROLE if name in vars(s)}) for s in learner.synapses.values()]
    muted = [one.muted for one in learner.passes]
    for one in learner.passes:
        one.muted = get_ident()
    try:
        for own, _ in held:
            own.update(_ROLE)
        yield
    finally:
        for one, before in zip(learner.passes, muted, strict=True):
            one.muted = before
        for own, before in held:
            own.update(before)
            for name in _ROLE.keys() - before.keys():
                del own[name]
