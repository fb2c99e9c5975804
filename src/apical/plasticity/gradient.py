"""Feedback that learns to predict the gradient from the gradient itself: synthetic gradients (lansdell2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from apical.phases.noisy_pass import Estimate
from apical.plasticity.regression import Learn, Regression

if TYPE_CHECKING:
    from apical.phases.phase import Phase


@dataclass(frozen=True)
class Gradient(Regression):
    """Regression on the true gradient: synthetic gradients of the same linear form (lansdell2020, SG). It transports weights."""

    name: ClassVar[str] = "gradient"

    @override
    def visit(self, phase: Phase, learn: Learn) -> None:
        phase.episode.true_signals(
            [site.name for site in phase.sites],
            lambda place, number, signal: learn(place, number, Estimate(signal.to(phase.dtype))),
        )
