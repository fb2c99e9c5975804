"""Feedback that learns to predict the gradient from what noise does to the loss (lansdell2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from apical.noise import Distribution, check_distribution, check_noise
from apical.plasticity.regression import Regression

if TYPE_CHECKING:
    from apical.phases.phase import Phase
    from apical.plasticity.regression import Learn


@dataclass(frozen=True)
class Perturbation(Regression):
    """Regression on what noise does to the loss: lambda^ = (L~ - L) xi / c (lansdell2020 eqs 1, 2, 8, 9).

    The noisy pass adds c xi to the activity at every place a teaching signal enters, after the nonlinearity, with the dropout
    masks and batch statistics of the clean pass.

    Args:
        noise: c, the standard deviation (paper: 0.01). distribution: "gaussian", "uniform" or "rademacher".

    Raises:
        ValueError: for noise that is no positive number, or an unknown distribution.

    >>> import apical
    >>> apical.rule("np", noise=0.1).plasticity.noise
    0.1
    """

    name: ClassVar[str] = "perturbation"
    broadcast = "one scalar per sample"
    noise: float = 0.01
    distribution: Distribution = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise("noise", self.noise)
        check_distribution(self.distribution)

    @override
    def visit(self, phase: Phase, learn: Learn) -> None:
        found = phase.estimates([site.name for site in phase.sites], self.noise, self.distribution)
        for place, target in found.items():
            learn(place, target)
