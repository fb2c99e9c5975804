"""Estimating gradients from what noise does to the loss (lansdell2020 eqs 2, 8; lillicrap2016's fast RL)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apical.noise import Distribution

if TYPE_CHECKING:
    from apical.phase import Phase

Place = tuple[str, int]
"""Where a teaching signal enters, and the number of the call there."""


@dataclass(frozen=True)
class Estimate:
    """A gradient at some activity [N, *features]: `values`, times `factors` where there are any.

    factors: one per sample [N, 1, ...]; of copies side by side, one per sample and feature [N, features, 1, ...].
    """

    values: Tensor
    factors: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """In full."""
        return self.values if self.factors is None else self.values * self.factors

    def taken_from(self, signal: Tensor, scale: float = 1.0, *, own: bool = False) -> Tensor:
        """Signal - scale * estimate, in one pass over memory; own: into the signal's."""
        out = signal if own else None
        if self.factors is None:
            return torch.sub(signal, self.values, alpha=scale, out=out)
        return torch.addcmul(signal, self.values, self.factors, value=-scale, out=out)


def estimates(
    phase: Phase, places: Container[str], c: float, distribution: Distribution, calls: Container[Place] | None = None
) -> dict[Place, Estimate]:
    """The gradient at every call of the places, as one noisy pass estimates it: (L~ - L) xi / c.

    Args:
        phase: whose batch passes again. places: where noise c xi is added, in all of them at once.
        c: standard deviation of the noise. calls: those that get noise; None: all.
    """
    episode = phase.episode
    rows = len(episode.losses)
    shapes = [phase.features(site) for site in phase.sites if site.name in places]
    sizes = [rows * shape.numel() for shape in shapes if shape is not None]
    supply = phase.supply(distribution, sizes)
    drawn: dict[Place, tuple[Tensor, Tensor | None]] = {}

    def add(place: str, call: int, activity: Tensor) -> Tensor | None:
        if place not in places or (calls is not None and (place, call) not in calls):
            return None
        if len(activity) != rows:
            raise RuntimeError(
                f"activity at '{place}' has {len(activity)} rows, but there are {rows} losses; a perturbation needs the batch in "
                "the first dimension throughout"
            )
        values, signs = supply.take(activity.shape)
        drawn[place, call] = values, signs
        noisy = (
            torch.add(activity, values, alpha=c) if signs is None else torch.addcmul(activity, values, signs, value=c)
        )
        return noisy.to(activity.dtype)

    change = (episode.perturbed(add) - episode.losses).to(phase.dtype) / c

    def estimate(values: Tensor, signs: Tensor | None) -> Estimate:
        own = change
        if change.dim() > 1:
            own = own.repeat_interleave(values.shape[1] // change.shape[1], dim=1)
        own = own.view(rows, -1, *[1] * (values.dim() - 2))
        return Estimate(values, own if signs is None else own * signs)

    return {place: estimate(*noise) for place, noise in drawn.items()}
