"""Noise with zero mean and unit variance: for phases in which feedback learns, and for networks that are noisy themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

Distribution = Literal["gaussian", "uniform", "rademacher"]


DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "uniform", "rademacher")


POOL = 1 << 20
"""Numbers beyond which a phase draws a pool and serves every place from it: drawing costs more than a layer's products."""
APART = 7919
"""Cache lines between the slices of two places that come one after the other; a prime, so that few places have the same one."""
AT_ONCE = 32
"""Places whose signs are drawn together: each draw is a launch or three."""


def fill(tensor: Tensor, distribution: Distribution, generator: torch.Generator, sd: float = 1.0) -> Tensor:
    """Fill `tensor` with independent noise of standard deviation `sd`."""
    if tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu":
        # PyTorch draws ten times faster in float32 there.
        return tensor.copy_(fill(torch.empty_like(tensor, dtype=torch.float32), distribution, generator, sd))
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

    Small amounts are drawn anew for every place. Large ones come from one pool, of which each place takes a slice at an offset of
    its own, times a random sign per sample: independent within a place, uncorrelated between places, so that every estimate
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
        self._signs: list[Tensor] = []
        self._taken = 0
        if sum(sizes) > POOL:
            self.pool = fill(self._empty(max(POOL, *sizes)), distribution, generator)

    def take(self, shape: torch.Size, like: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Values of `shape` [N, *features] and, where they come from the pool, signs [N, 1, ...] to multiply them with.

        like: whose memory format they are to have.
        """
        size = shape.numel()
        if self.pool is None or size > len(self.pool):
            return shaped(fill(self._empty(size), self.distribution, self.generator), shape, like), None
        # Whole cache lines, so that vectorized kernels stay on their fast path; always the same ones, as a CUDA graph has them.
        lines = (len(self.pool) - size + 1 + 15) // 16
        start = self._taken * APART % lines * 16
        self._taken += 1
        return shaped(self.pool[start : start + size], shape, like), self._sign(shape)

    def _sign(self, shape: torch.Size) -> Tensor:
        """Signs [N, 1, ...], of many that are drawn at once."""
        if not self._signs or len(self._signs[-1]) != shape[0]:
            self._signs = list(fill(self._empty(AT_ONCE, shape[0]), "rademacher", self.generator))
        return self._signs.pop().view(shape[0], *[1] * (len(shape) - 1))

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self.device, dtype=self.dtype)


def shaped(flat: Tensor, shape: torch.Size, like: Tensor | None) -> Tensor:
    """A flat tensor as one of `shape`, with channels last in memory where `like` has them: arithmetic between layouts is slow."""
    if like is None or len(shape) != like.dim() or not channels_last(like):
        return flat.view(shape)
    return flat.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def channels_last(tensor: Tensor) -> bool:
    """Whether images, volumes or their kernels have their channels last in memory.

    By strides alone, as kernels decide: of a kernel of one position `is_contiguous` says that it is everything.
    """
    return (
        tensor.dim() in (4, 5)
        and tensor.shape[1] > 1
        and tensor.stride(1) == 1
        and tensor.stride(-1) == tensor.shape[1]
    )


class Supplies:
    """One supply for each of the copies that lie side by side in dimension 1."""

    def __init__(self, own: Sequence[Supply]) -> None:
        self.own = own

    def take(self, shape: torch.Size, like: Tensor | None = None) -> tuple[Tensor, None]:
        """Values of `shape` [N, copies features, ...], each copy's in the order in which it would have them alone."""
        share = torch.Size([shape[0], shape[1] // len(self.own), *shape[2:]])
        drawn = [one.take(share, like) for one in self.own]
        return torch.cat([values if signs is None else values * signs for values, signs in drawn], 1), None
