"""Layers of the papers' networks that PyTorch has otherwise, and their initial weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from apical.checks import number
from apical.synapses.locally_connected import LocallyConnected2d

Form = Literal["paper", "code"]
"""Of two that differ: the network as the paper prints it, or as the released code has it."""


def check_form(form: str) -> None:
    """Raise a ValueError unless `form` is one of `Form`."""
    if form not in ("paper", "code"):
        raise ValueError(f"form must be 'paper' (as printed) or 'code' (as released), got {form!r}")


class SaturatedLinearity(nn.Module):
    """f(h) = min(max(slope h, -1), 1) elementwise (amit2019 section 4).

    f' is the slope up to and including |slope h| = 1, as the paper defines it, and 0 beyond; `nn.Hardtanh` has 0 at 1 already.

    Args:
        slope: 1 in the paper, 0.5 in the released code.

    >>> SaturatedLinearity(0.5)(torch.tensor([-3.0, 1.0, 2.0]))
    tensor([-1.0000,  0.5000,  1.0000])
    """

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        number("slope", slope, above=0)
        self.slope = slope

    @override
    def forward(self, h: Tensor) -> Tensor:
        return (h if self.slope == 1 else self.slope * h).clamp(-1, 1)

    @override
    def extra_repr(self) -> str:
        return f"slope={self.slope}"


class ZeroPaddedMaxPool2d(nn.Module):
    """Max pooling with one window per stride, padded with zeros: x [N, C, H, W] -> [N, C, ceil(H / s), ceil(W / s)] (amit2019).

    Zeros compete with values at the border, where `nn.MaxPool2d` pads with minus infinity.

    Args:
        kernel_size, stride: of the window, in both dimensions.
        place: "centred", the window has its middle at every stride-th position (paper); or "corner", it begins there and
            reaches to the lower right (released code). Windows of 2 are the same in both.

    Raises:
        ValueError: for an unknown place, or sizes below 1.

    >>> x = -torch.ones(1, 1, 4, 4)
    >>> ZeroPaddedMaxPool2d(3, 2)(x).flatten(), ZeroPaddedMaxPool2d(3, 2, "corner")(x).flatten()
    (tensor([ 0.,  0.,  0., -1.]), tensor([-1.,  0.,  0.,  0.]))
    """

    def __init__(self, kernel_size: int, stride: int, place: Literal["centred", "corner"] = "centred") -> None:
        super().__init__()
        for name, value in (("kernel_size", kernel_size), ("stride", stride)):
            number(name, value, least=1, whole=True)
        if place not in ("centred", "corner"):
            raise ValueError(f"place must be 'centred' or 'corner', got {place!r}")
        self.kernel_size, self.stride, self.place = kernel_size, stride, place

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(
            F.pad(x, [*self._sides(x.shape[-1]), *self._sides(x.shape[-2])]), self.kernel_size, self.stride
        )

    def _sides(self, n: int) -> tuple[int, int]:
        """Zeros before and after n positions."""
        before = (self.kernel_size - 1) // 2 if self.place == "centred" else 0
        last = (math.ceil(n / self.stride) - 1) * self.stride
        return before, max(0, last + self.kernel_size - before - n)

    @override
    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, place={self.place!r}"


class UnscaledDropout(nn.Dropout):
    """Dropout that leaves what it does not drop as it is, in training and in eval mode (lansdell2020, released code).

    `nn.Dropout` divides by 1 - p in training. In both, p is the fraction that is dropped.

    >>> sorted(set(UnscaledDropout(0.5)(torch.ones(100)).tolist()))
    [0.0, 1.0]
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        # Not what nn.Dropout gives times 1 - p, which rounds.
        return torch.where(F.dropout(torch.ones_like(input), self.p) > 0, input, 0) if self.training else input


@torch.no_grad()
def glorot(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw weights anew, U(+-sqrt(6 / (fan in + fan out))), and set biases to zero (Glorot and Bengio 2010); gives `model` back.

    Of linear layers, convolutions and locally connected ones; fans include the kernel. For feedback: ``init="glorot"``.

    Args:
        model: changed in place. generator: None for PyTorch's own.

    >>> layer = glorot(nn.Conv2d(4, 6, 3, bias=False))
    >>> float(layer.weight.detach().abs().max()) <= (6 / (4 * 9 + 6 * 9)) ** 0.5
    True
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        elif isinstance(layer, LocallyConnected2d):
            outward, _, _, inward, *kernel = layer.weight.shape
            bound = math.sqrt(6 / ((inward + outward) * math.prod(kernel)))
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model
