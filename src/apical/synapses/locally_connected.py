"""Locally connected ("untied") layers: convolutions in which every output position has weights of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from apical.checks import number

Pair = int | tuple[int, int]

PADDINGS = ("zeros", "reflect", "replicate", "circular")


def transmit(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "o oh ow i kh kw"],
    bias: Float[Tensor, "o oh ow"] | None,
    *geometry: Any,
) -> Float[Tensor, "n o oh ow"]:
    """The layer's output for an input that is padded already; `geometry` as `LocallyConnected2d.geometry` has it."""
    y = torch.einsum("ngpi,gopi->ngop", _patches(x, *geometry), _by_position(weight, geometry[-1]))
    y = y.flatten(1, 2).unflatten(2, weight.shape[1:3]).contiguous()
    return y if bias is None else y + bias.to(y.dtype)


def feed_back(
    delta: Float[Tensor, "n o oh ow"], weight: Float[Tensor, "o oh ow i kh kw"], shape: torch.Size, *geometry: Any
) -> Float[Tensor, "n c h w"]:
    """Signals [N, C, H, W] at the padded input, of `shape`: every position's delta goes back through weights of its own."""
    kernel, stride, dilation, groups = geometry
    delta = delta.unflatten(1, (groups, -1)).flatten(3)
    columns = torch.einsum("ngop,gopi->ngip", delta, _by_position(weight, groups)).flatten(1, 2)
    return F.fold(columns, shape[2:], kernel, dilation, 0, stride)


def hebbian(
    x: Float[Tensor, "n c h w"], delta: Float[Tensor, "n o oh ow"], *geometry: Any
) -> Float[Tensor, "o oh ow i kh kw"]:
    """The sum over the batch alone of delta and the padded input that each position meets."""
    kernel, _, _, groups = geometry
    errors = delta.unflatten(1, (groups, -1)).flatten(3)
    product = torch.einsum("ngop,ngpi->gopi", errors, _patches(x, *geometry))
    return product.reshape(delta.shape[1], *delta.shape[2:], x.shape[1] // groups, *kernel)


def _patches(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Float[Tensor, "n g p i"]:
    """What each output position meets, group by group."""
    for dimension, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(dimension, d * (k - 1) + 1, s)[..., ::d]
    return x.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)


def _by_position(weight: Tensor, groups: int) -> Float[Tensor, "g o p i"]:
    return weight.unflatten(0, (groups, -1)).flatten(4).flatten(2, 3)


class LocallyConnected2d(nn.Module):
    """A convolution whose output positions share no weights: x [N, in, H, W] -> y [N, out, oh, ow] (amit2019, "untied").

    a[p] = sum over offsets k and channels c of W[p][k, c] x[p + k, c], plus b[p]. Weight [out, oh, ow, in / groups, kh, kw] and
    bias [out, oh, ow] start as those of `nn.Conv2d` do, U(+-1/sqrt(in / groups kh kw)). An input without a batch will do.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as `nn.Conv2d` has them.
        input_size: (H, W) of the only inputs that it takes, or one number for both.

    Raises:
        ValueError: for arguments that don't go together, and in the forward pass for an input of another size.

    >>> layer = LocallyConnected2d(3, 8, 5, input_size=32, padding=2)
    >>> layer(torch.zeros(2, 3, 32, 32)).shape, layer.weight.shape
    (torch.Size([2, 8, 32, 32]), torch.Size([8, 32, 32, 3, 5, 5]))
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        input_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        number("groups", groups, least=1, whole=True)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            number(name, value, least=1, whole=True)
            if value % groups:
                raise ValueError(f"{name} must be a multiple of groups={groups}, got {value}; groups=1 always goes")
        if padding_mode not in PADDINGS:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDINGS)}, got {padding_mode!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.input_size = _pair("kernel_size", kernel_size), _pair("input_size", input_size)
        self.stride, self.dilation = _pair("stride", stride), _pair("dilation", dilation)
        self.padding_mode = padding_mode
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        self.padding, self.sides = self._padding(padding, spans)
        self.output_size = self._output_size(spans)
        shape = (out_channels, *self.output_size, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        kept = torch.empty(shape[:3], device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if kept is None else nn.Parameter(kept))
        self.reset_parameters()

    def _padding(
        self, padding: Pair | str, spans: list[int]
    ) -> tuple[tuple[int, int] | str, tuple[tuple[int, int], ...]]:
        """The padding as given, and how much that is (before, after) in either dimension."""
        if padding == "same":
            if self.stride != (1, 1):
                raise ValueError(f"padding='same' goes with stride=1 alone, got stride={self.stride}; give numbers")
            # An odd amount has its larger half behind, as nn.Conv2d has it.
            return "same", tuple(((span - 1) // 2, span - 1 - (span - 1) // 2) for span in spans)
        if isinstance(padding, str):
            if padding != "valid":
                raise ValueError(f"padding must be a number, two of them, 'same' or 'valid', got {padding!r}")
            return "valid", ((0, 0), (0, 0))
        each = _pair("padding", padding, least=0)
        return each, tuple((n, n) for n in each)

    def _output_size(self, spans: list[int]) -> tuple[int, int]:
        most = {"reflect": -1, "circular": 0}.get(self.padding_mode)
        if most is not None and any(max(side) > n + most for side, n in zip(self.sides, self.input_size, strict=True)):
            raise ValueError(
                f"padding={self.padding!r} is more than padding_mode={self.padding_mode!r} finds in input_size="
                f"{self.input_size}; pad less, or with padding_mode='zeros'"
            )
        inputs = [n + sum(side) for n, side in zip(self.input_size, self.sides, strict=True)]
        if any(span > n for span, n in zip(spans, inputs, strict=True)):
            raise ValueError(
                f"kernel_size={self.kernel_size} with dilation={self.dilation} spans {_times(spans)} positions, and input_size="
                f"{self.input_size} has, padded, {_times(inputs)}; take a smaller kernel or more padding"
            )
        high, wide = ((n - span) // s + 1 for n, span, s in zip(inputs, spans, self.stride, strict=True))
        return high, wide

    @classmethod
    def from_convolution(cls, convolution: nn.Conv2d, input_size: Pair) -> LocallyConnected2d:
        """A layer that computes what `convolution` does, with a copy of its weights and biases at every position.

        Args:
            convolution: stays as it is. input_size: (H, W) of its inputs.

        Raises:
            TypeError: if it is no `nn.Conv2d`.

        >>> x, tied = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 4, 3)
        >>> torch.allclose(LocallyConnected2d.from_convolution(tied, 8)(x), tied(x), atol=1e-5)
        True
        """
        if not isinstance(convolution, nn.Conv2d):
            raise TypeError(f"only an nn.Conv2d can be untied, got {type(convolution).__name__}")
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        weight, bias = convolution.weight, convolution.bias
        with torch.device("meta"):  # No numbers are drawn.
            made = cls(
                convolution.in_channels,
                convolution.out_channels,
                input_size=input_size,
                bias=bias is not None,
                **{name: getattr(convolution, name) for name in names},
            )
        made.weight = nn.Parameter(made.untied(weight.detach()), requires_grad=weight.requires_grad)
        if bias is not None:
            made.bias = nn.Parameter(made.untied(bias.detach()), requires_grad=bias.requires_grad)
        return made.train(convolution.training)

    def untied(self, tensor: Tensor) -> Tensor:
        """A tensor of a convolution's weights or biases, [out, *], at every position, [out, oh, ow, *]."""
        high, wide = self.output_size
        return tensor[:, None, None].repeat(1, high, wide, *[1] * (tensor.dim() - 1))

    def reset_parameters(self) -> None:
        """Draw weights and biases anew."""
        bound = 1 / math.sqrt(self.weight[0, 0, 0].numel())
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @property
    def geometry(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
        """(kernel size, stride, dilation, groups)."""
        return self.kernel_size, self.stride, self.dilation, self.groups

    def padded(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """The input with its padding. Raises a ValueError for one of another shape than the layer has weights for."""
        if x.dim() != 4 or x.shape[1:] != (self.in_channels, *self.input_size):
            raise ValueError(
                f"{type(self).__name__} has weights for inputs [N, {self.in_channels}, {self.input_size[0]}, "
                f"{self.input_size[1]}], got {list(x.shape)}; make it with in_channels and input_size as its inputs have them"
            )
        (top, bottom), (left, right) = self.sides
        if not (top or bottom or left or right):
            return x
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, (left, right, top, bottom), mode)

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return transmit(self.padded(x.unsqueeze(0)), self.weight, self.bias, *self.geometry).squeeze(0)
        return transmit(self.padded(x), self.weight, self.bias, *self.geometry)

    @override
    def extra_repr(self) -> str:
        named = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
        others = [f"{name}={getattr(self, name)!r}" for name, usual in named.items() if getattr(self, name) != usual]
        shown = [f"kernel_size={self.kernel_size}", f"input_size={self.input_size}", *others]
        shown += ["bias=False"] if self.bias is None else []
        return f"{self.in_channels}, {self.out_channels}, {', '.join(shown)}"


def _pair(name: str, value: Pair, least: int = 1) -> tuple[int, int]:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name} must be a number or two of them, for height and width, got {value!r}")
        for one in value:
            number(name, one, least=least, whole=True)
        return value[0], value[1]
    number(name, value, least=least, whole=True, otherwise="; or give two, for height and width")
    return value, value


def _times(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))
