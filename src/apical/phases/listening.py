"""What phases listen for: which synapses, and calls of them that no recorded pass holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from apical.pathways.checkpointing import recomputing
from apical.plasticity.base import Phased
from apical.synapses.transformed import compiling, within_compiled

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.synapses.synapse import Geometry, Synapse


@dataclass(frozen=True)
class Listeners:
    """Names of the synapses whose plasticity, or whose pathway or plasticity, learns from the pass before."""

    plasticities: frozenset[str]
    all: frozenset[str]

    @classmethod
    def of(cls, learner: Learner) -> Listeners:
        """Those of a learner."""
        own = {name for name, synapse in learner.synapses.items() if listens(synapse.plasticity)}
        entering = {name for name, synapse in learner.synapses.items() if listens(synapse.pathway)}
        return cls(frozenset(own), frozenset(own | entering))


class Astray:
    """Calls outside a forward pass of the whole model, which a phase can't repeat. A circuit's record while no pass is open.

    It knows no recorder: synapses reach it, and the recorder's newest pass holds a graph that holds them.
    """

    def __init__(self, listeners: Listeners) -> None:
        self.listeners = listeners
        self.paused = False
        self.heard: dict[str, int] = {}
        """Name of a synapse that was backpropagated so -> its weights' version counter then."""

    def since_step(self, synapses: Mapping[str, Synapse]) -> set[str]:
        """Names of those of `synapses` that have been backpropagated so since their weights moved."""
        return {label for label, version in self.heard.items() if synapses[label].weight._version == version}

    def call(self, synapse: Synapse) -> StrayCall | None:
        """The record of a call, where it matters."""
        if compiling() or self.paused or recomputing() or synapse.label not in self.listeners.all or within_compiled():
            return None
        return StrayCall(self, synapse)

    def call_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        """A call that no backward pass comes by: nothing to record."""

    def cut(self, synapse: Synapse, x: Tensor) -> None:
        """Activity at a cut; what counts is whether the call itself is backpropagated."""


@dataclass
class StrayCall:
    """One call outside a pass of the whole model."""

    astray: Astray
    synapse: Synapse

    def hear(self, delta: Tensor, signal: Tensor | None, geometry: Geometry) -> None:
        """Note that a backward pass has come by."""
        self.astray.heard[self.synapse.label] = self.synapse.weight._version


def listens(part: object) -> bool:
    """Whether a plasticity or pathway learns from the pass before its phase."""
    return isinstance(part, Phased) and part.needs == "the pass before"
