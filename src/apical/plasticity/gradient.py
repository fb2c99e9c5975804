"""Feedback that learns to predict the gradient from the gradient itself: synthetic gradients (lansdell2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from apical.plasticity.regression import Regression

if TYPE_CHECKING:
    from apical.phases.phase import Phase
    from apical.plasticity.regression import Learn


@dataclass(frozen=True)
class Gradient(Regression):
    """Regression on the true gradient: synthetic gradients of the same linear form (lansdell2020, SG). It transports weights.

    >>> import apical
    >>> apical.rule("sg", rate=0.01).plasticity.solver
    'sgd'
    """

    name: ClassVar[str] = "gradient"

    @override
    def visit(self, phase: Phase, learn: Learn) -> None:
        phase.true_gradients([site.name for site in phase.sites], learn)
