"""Noise with zero mean and unit variance: for phases in which feedback learns, and for networks that are noisy themselves."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from apical import capturing

Distribution = Literal["gaussian", "uniform", "rademacher"]


DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "uniform", "rademacher")


POOL = 1 << 20
"""Numbers beyond which a phase draws a pool and serves every place from it: drawing costs more than a layer's products."""


def fill(tensor: Tensor, distribution: Distribution, generator: torch.Generator, sd: float = 1.0) -> Tensor:
    """Fill `tensor` with independent noise of standard deviation `sd`."""
    if distribution == "gaussian":
        return tensor.normal_(0.0, sd, generator=generator)
    if distribution == "uniform":
        return tensor.uniform_(-sd * math.sqrt(3), sd * math.sqrt(3), generator=generator)
    return tensor.bernoulli_(0.5, generator=generator).sub_(0.5).mul_(2 * sd)


def check_noise(name: str, value: object) -> None:
    """Raise a ValueError unless `value` is a scale that noise can have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}; nothing could be learned from other noise")


def check_distribution(value: object) -> None:
    """Raise a ValueError unless `value` names a distribution."""
    if value not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {value!r}")


class Supply:
    """Noise for many places of one pass.

    Small amounts are drawn anew for every place. Large ones come from one pool, of which each place takes a slice at a random
    offset, times a random sign per sample: independent within a place, uncorrelated between places, so that every estimate
    that multiplies noise with noise keeps its expectation.

    Args:
        sizes: numbers that the places will take, in total and at most per place.
    """

    def __init__(
        self,
        distribution: Distribution,
        sizes: Iterable[int],
        *,
        generator: torch.Generator,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.distribution: Distribution = distribution
        self.generator, self.device, self.dtype = generator, device, dtype
        sizes = list(sizes)
        self.pool: Tensor | None = None
        if sum(sizes) > POOL:
            capturing.hinder(
                f"a phase takes {sum(sizes):,} numbers, more than {POOL:,}, from a pool at offsets that Python draws"
            )
            # On the CPU, so that a GPU is not waited for.
            self._offsets = random.Random(generator.initial_seed())
            self.pool = fill(self._empty((max(POOL, *sizes),)), distribution, generator)

    def take(self, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """Values of `shape` [N, *features] and, where they come from the pool, signs [N, 1, ...] to multiply them with."""
        if self.pool is None or shape.numel() > len(self.pool):
            return fill(self._empty(shape), self.distribution, self.generator), None
        room = len(self.pool) - shape.numel() + 1
        # Whole cache lines, so that vectorized kernels stay on their fast path.
        start = self._offsets.randrange((room + 15) // 16) * 16
        signs = fill(self._empty((shape[0], *[1] * (len(shape) - 1))), "rademacher", self.generator)
        return self.pool[start : start + shape.numel()].view(shape), signs

    def _empty(self, shape: Iterable[int]) -> Tensor:
        return torch.empty(tuple(shape), device=self.device, dtype=self.dtype)


class Supplies:
    """One supply for each of the copies that lie side by side in dimension 1."""

    def __init__(self, own: Sequence[Supply]) -> None:
        self.own = own

    def take(self, shape: torch.Size) -> tuple[Tensor, None]:
        """Values of `shape` [N, copies features, ...]."""
        share = torch.Size([shape[0], shape[1] // len(self.own), *shape[2:]])
        drawn = [one.take(share) for one in self.own]
        return torch.cat([values if signs is None else values * signs for values, signs in drawn], 1), None
