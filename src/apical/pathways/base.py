"""What every pathway answers: how a teaching signal reaches a synapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from apical.pathways.taps import Tap
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.phases.phase import Phase


@dataclass(frozen=True)
class Pathway:
    """How a teaching signal reaches a synapse."""

    name: ClassVar[str]
    wired: ClassVar[bool] = False
    """Whether taps and a broadcast node are needed, and so `example_input`, which shows the taps' shapes."""
    adapts: ClassVar[bool] = False
    """Whether the signal is found in a phase of its own, `adapt`."""
    listens: ClassVar[bool] = False
    """Whether that phase wants to know what went through the synapses in the pass before."""
    replicates: ClassVar[bool] = False
    """Whether a phase that listens knows copies of a network side by side apart (see `apical.replicate`)."""
    broadcasts: ClassVar[str] = ""
    """What that phase sends to every synapse alike, in words."""
    chained: ClassVar[bool] = False
    """Whether the signal needs the synapses' outputs too, in the order of one chain."""

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input as the synapse takes it, and what its backward keeps of the feedback (None: no signal goes back)."""
        raise NotImplementedError

    def adapt(self, phase: Phase) -> None:
        """Let the synapses at ``phase.sites`` learn from what their own phase finds."""
        raise NotImplementedError

    def signals(
        self,
        e: Tensor,
        taps: list[Tap],
        xs: Sequence[Tensor],
        feedbacks: Sequence[Tensor | None],
        weights: Sequence[Tensor],
    ) -> list[Tensor]:
        """For a chained pathway: the teaching signal at every tap.

        Args:
            e: the output's error [N, outputs]. taps: in the order of the forward pass.
            xs: each tap's activity, with its graph. feedbacks: each tap's D, or None. weights: of each tap's synapse.
        """
        raise NotImplementedError
