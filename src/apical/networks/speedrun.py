"""A small convolutional network that learns CIFAR-10 in few epochs, and its first layer, which is measured and not learned.

The design is that of the CIFAR-10 speed-runs (Page 2018; Jordan 2024): whitened patches, three blocks of two convolutions with
batch norm of fixed scale and GELU, convolutions that start as the identity, a scaled output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

WIDTHS = (64, 256, 256)
"""Channels of the three blocks."""


class Whitening(nn.Module):
    """A convolution whose outputs on the patches of given images are uncorrelated, of mean 0 and variance 1; it never learns.

    x [N, C, H, W] -> [N, 2 C k^2, H - k + 1, W - k + 1]: the patches' coordinates along the eigenvectors of their covariance,
    each divided by the root of its eigenvalue plus `eps`, and then all of them with the other sign, as what follows cuts half
    off.

    Args:
        channels: C. kernel: k. eps: of images of deviation 1; it keeps directions that hardly vary from being blown up.

    >>> layer = Whitening(1, kernel=2, eps=0.0)
    >>> layer.measure([torch.randn(100, 1, 4, 4)])
    >>> y = layer(torch.zeros(1, 1, 4, 4))
    >>> y.shape, torch.equal(y[:, :4], -y[:, 4:])
    (torch.Size([1, 8, 3, 3]), True)
    """

    def __init__(self, channels: int = 3, kernel: int = 2, eps: float = 5e-4) -> None:
        super().__init__()
        self.kernel, self.eps = kernel, eps
        self.convolution = nn.Conv2d(channels, 2 * channels * kernel**2, kernel)
        self.convolution.requires_grad_(False)

    @torch.no_grad()
    def measure(self, images: Iterable[Float[Tensor, "n c h w"]]) -> None:
        """Become what whitens the patches of these images, batch by batch, whatever it was before."""
        convolution = self.convolution
        size = convolution.weight[0].numel()
        total, squares, count = torch.zeros(size).double(), torch.zeros(size, size).double(), 0
        for x in images:
            patches = F.unfold(x.double(), self.kernel).transpose(1, 2).flatten(0, 1)
            total, squares, count = total + patches.sum(0), squares + patches.t() @ patches, count + len(patches)
        mean = total / count
        values, vectors = torch.linalg.eigh(squares / count - mean.outer(mean))
        half = vectors.t() / (values.clamp(min=0) + self.eps).sqrt()[:, None]
        weight = torch.cat([half, -half])
        convolution.weight.copy_(weight.view_as(convolution.weight))
        convolution.bias.copy_(-weight @ mean)  # pyright: ignore[reportOptionalMemberAccess]

    @override
    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        return self.convolution(x)


class Scaled(nn.Module):
    """x times a fixed number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    @override
    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"


def speedrun(classes: int = 10, channels: int = 3, *, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """The network of `apical speedrun`: x [N, channels, 32, 32] -> [N, classes].

    `Whitening` of patches of 2x2 and GELU; three blocks of convolution, max-pooling of 2x2, batch norm, GELU, convolution, batch
    norm, GELU, all 3x3 without bias; max-pooling of 3x3, a linear layer without bias, times 1/9. The first maps of each
    convolution start as copies of its inputs. Batch norm learns biases, and no scales.

    Args:
        classes: values of the output. channels: of the images. widths: channels of the blocks.

    >>> net = speedrun(widths=(8, 16, 16))
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    first = Whitening(channels)
    layers: list[nn.Module] = [first, nn.GELU()]
    for before, width in pairwise([first.convolution.out_channels, *widths]):
        layers += [_convolution(before, width), nn.MaxPool2d(2), _norm(width), nn.GELU()]
        layers += [_convolution(width, width), _norm(width), nn.GELU()]
    return nn.Sequential(
        *layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(widths[-1], classes, bias=False), Scaled(1 / 9)
    )


def _convolution(before: int, after: int) -> nn.Conv2d:
    made = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(made.weight.data[: min(before, after)])
    return made


def _norm(width: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(width, momentum=0.4)
    made.weight.requires_grad_(False)
    return made
