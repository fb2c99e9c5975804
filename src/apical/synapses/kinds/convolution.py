"""Convolutions and transposed convolutions as synapses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.synapses.synapse import Geometry, Synapse


def _at_most(extents: Sequence[int], positions: int | None) -> list[int]:
    """Extents of a smaller map of the same proportions with at most so many positions."""
    if positions is None or math.prod(extents) <= positions:
        return list(extents)
    share = (positions / math.prod(extents)) ** (1 / len(extents))
    return [max(1, int(extent * share)) for extent in extents]


class _ConvolutionSynapse(Synapse):
    """All convolutions: one call of ATen's backward, with B where backpropagation puts W, does all three products."""

    spatial: ClassVar[int]
    unit_dim = 1
    output_dim = 0
    kernel = "convolution"
    padding: str | tuple[int, ...]
    padding_mode: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    _reversed_padding_repeated_twice: list[int]

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        if input.dim() == self.spatial + 1 and torch.is_grad_enabled():
            return super().forward(input.unsqueeze(0), *args).squeeze(0)
        return super().forward(input, *args)

    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0,) * self.spatial
        elif padding == "valid":
            padding = (0,) * self.spatial
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            if any(t % 2 for t in total):
                x = F.pad(x, self._reversed_padding_repeated_twice)
                total = [0] * self.spatial
            padding = tuple(t // 2 for t in total)
        return x, (self.stride, padding, self.dilation, False, (0,) * self.spatial, self.groups)

    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        extents = _at_most(self._positions(features, spans), positions)
        zeros = (0,) * self.spatial
        geometry = (self.stride, zeros, self.dilation, False, zeros, self.groups)
        inputs = [(n - 1) * s + span for n, s, span in zip(extents, self.stride, spans, strict=True)]
        return torch.Size([features[0], *inputs]), geometry

    def _positions(self, features: torch.Size, spans: list[int]) -> list[int]:
        """Output positions for an input of `features`."""
        padding = self.padding
        if padding == "same":
            padding = [(span - 1) / 2 for span in spans]
        elif padding == "valid":
            padding = [0] * self.spatial
        sizes = zip(features[1:], padding, spans, self.stride, strict=True)
        return [int(n + 2 * p - span) // s + 1 for n, p, span, s in sizes]  # type: ignore[operator]

    def transmit(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            x, geometry = self.prepare(x)
        return torch.convolution(x, weight, bias, *geometry)

    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            # `shape` is that of the layer's own input: go back through its padding as well.
            with torch.enable_grad():
                x = delta.new_zeros(shape).requires_grad_()
                padded, geometry = self.prepare(x)
            signal = self.feed_back(delta, feedback, padded.shape, geometry)
            return torch.autograd.grad(padded, x, signal)[0] if padded is not x else signal
        signal, _, _ = self.respond(None, delta, feedback, shape, geometry, False, False)
        assert signal is not None
        return signal

    def hebbian(self, x: Tensor, delta: Tensor, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            x, geometry = self.prepare(x)
        _, product, _ = self.respond(x, delta, None, x.shape, geometry, True, False)
        assert product is not None
        return product

    def respond(self, x, delta, feedback, shape, geometry, need_weight, need_bias):
        if not (need_weight or need_bias or feedback is not None):
            return None, None, None
        # Only shapes are read where a product is masked out, so an empty tensor stands in for x or B.
        if x is None:
            x = delta.new_empty(shape)
        absent = feedback is None
        if absent:
            feedback = torch.empty_like(self.weight_now, dtype=delta.dtype)
        signal, product, bias = torch.ops.aten.convolution_backward(
            delta, x, feedback, [delta.shape[1]], *geometry, [not absent, need_weight, need_bias]
        )
        return (None if absent else signal), (product if need_weight else None), (bias if need_bias else None)


class Conv1dSynapse(_ConvolutionSynapse, nn.Conv1d):
    """`nn.Conv1d`: x [N, in, L], W and B [out, in / groups, k].

    >>> import apical, torch
    >>> layer = torch.nn.Conv1d(2, 4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([4, 2, 3])
    """

    plain, spatial = nn.Conv1d, 1


class Conv2dSynapse(_ConvolutionSynapse, nn.Conv2d):
    """`nn.Conv2d`: x [N, in, H, W], W and B [out, in / groups, kh, kw].

    >>> import apical, torch
    >>> layer = torch.nn.Conv2d(2, 4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([4, 2, 3, 3])
    """

    plain, spatial = nn.Conv2d, 2


class Conv3dSynapse(_ConvolutionSynapse, nn.Conv3d):
    """`nn.Conv3d`: x [N, in, D, H, W], W and B [out, in / groups, kd, kh, kw].

    >>> import apical, torch
    >>> layer = torch.nn.Conv3d(2, 4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([4, 2, 3, 3, 3])
    """

    plain, spatial = nn.Conv3d, 3


class _ConvolutionTransposeSynapse(_ConvolutionSynapse):
    kernel = "convolution"
    output_dim = 1
    _output_padding: Callable[..., list[int]]

    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        output_size = args[0] if args else None
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, self.spatial, self.dilation
        )
        return x, (self.stride, self.padding, self.dilation, True, tuple(output_padding), self.groups)

    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            # The call may have asked for this size of the output.
            _, geometry = self.prepare(delta.new_empty(shape), list(delta.shape[2:]))
        return super().feed_back(delta, feedback, shape, geometry)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None:
            return super().forward(input)
        # With or without the channels in front, as the plain layer takes it.
        return super().forward(input, output_size[-self.spatial :] if torch.is_grad_enabled() else output_size)

    def fans(self) -> tuple[int, int]:
        inward, outward = super().fans()
        return outward, inward

    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        # Nothing is cut off the output, so every input position meets the whole kernel.
        extents = _at_most(features[1:], positions)
        zeros = (0,) * self.spatial
        return torch.Size([features[0], *extents]), (self.stride, zeros, self.dilation, True, zeros, self.groups)

    def pairs(self, x: Tensor, y: Tensor) -> int:
        return x.numel() // x.shape[1]


class ConvTranspose1dSynapse(_ConvolutionTransposeSynapse, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d`: x [N, in, L], W and B [in, out / groups, k].

    >>> import apical, torch
    >>> layer = torch.nn.ConvTranspose1d(2, 4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([2, 4, 3])
    """

    plain, spatial = nn.ConvTranspose1d, 1


class ConvTranspose2dSynapse(_ConvolutionTransposeSynapse, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`: x [N, in, H, W], W and B [in, out / groups, kh, kw].

    >>> import apical, torch
    >>> layer = torch.nn.ConvTranspose2d(2, 4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([2, 4, 3, 3])
    """

    plain, spatial = nn.ConvTranspose2d, 2


class ConvTranspose3dSynapse(_ConvolutionTransposeSynapse, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d`: x [N, in, D, H, W], W and B [in, out / groups, kd, kh, kw].

    >>> import apical, torch
    >>> layer = torch.nn.ConvTranspose3d(2, 4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([2, 4, 3, 3, 3])
    """

    plain, spatial = nn.ConvTranspose3d, 3
