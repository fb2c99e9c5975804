"""ZCA whitening of images, as the released code does it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from apical.data.images import Split

EPSILON = 1e-5  # koraykv/unsup's default, as in the released code


@dataclass(frozen=True)
class Whitening:
    """ZCA: x -> (x - mean) V (D + epsilon)^-1/2 V^T, of the covariance V D V^T of the images' pixels.

    Args:
        mean: [features]. matrix: [features, features].
    """

    mean: Tensor
    matrix: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W], whitened."""
        return ((images.flatten(1) - self.mean) @ self.matrix).view_as(images)


@lru_cache(maxsize=1)
def whitening(split: Split) -> Whitening:
    """The whitening of a split's images, which takes about a minute for those of CIFAR."""
    n, total, square = len(split), torch.zeros(()), torch.zeros(())
    for images, _ in split.in_order(1000):
        x = images.flatten(1)
        total, square = total + x.double().sum(0), square + (x.t() @ x).double()
    mean = total / n
    covariance = (square - n * torch.outer(mean, mean)) / max(1, n - 1)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = (vectors * (values.clamp(min=0) + EPSILON).rsqrt()) @ vectors.t()
    return Whitening(mean.float(), matrix.float())
