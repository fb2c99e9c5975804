"""Feedback that learns to predict the gradient from what noise does to the loss (lansdell2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from apical.noise import Distribution, check_distribution, check_noise
from apical.phases.noisy_pass import estimates
from apical.plasticity.regression import Learn, Regression

if TYPE_CHECKING:
    from apical.phases.phase import Phase


@dataclass(frozen=True)
class Perturbation(Regression):
    """Regression on what noise does to the loss: lambda^ = (L~ - L) xi / c (lansdell2020 eqs 1, 2, 8, 9).

    The noisy pass adds c xi to the activity at every place a teaching signal enters, after the nonlinearity, with the dropout
    masks and batch statistics of the clean pass.

    noise: c, the standard deviation (paper: 0.01). distribution: "gaussian", "uniform" or "rademacher".
    """

    name: ClassVar[str] = "perturbation"
    broadcasts: ClassVar[str] = "one scalar per sample"
    noise: float = 0.01
    distribution: Distribution = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise("noise", self.noise)
        check_distribution(self.distribution)

    @override
    def visit(self, phase: Phase, learn: Learn) -> None:
        found = estimates(phase, [site.name for site in phase.sites], self.noise, self.distribution)
        for (place, number), target in found.items():
            learn(place, number, target)
