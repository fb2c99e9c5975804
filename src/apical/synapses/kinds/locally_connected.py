"""Locally connected layers as synapses."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from apical.synapses import locally_connected
from apical.synapses.locally_connected import LocallyConnected2d
from apical.synapses.synapse import Geometry, Synapse


class LocallyConnected2dSynapse(Synapse, LocallyConnected2d):
    """`LocallyConnected2d`: x [N, in, H, W], W and B [out, oh, ow, in / groups, kh, kw]; no positions share weights.

    >>> import apical, torch
    >>> layer = LocallyConnected2d(2, 4, 3, input_size=5)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([4, 3, 3, 2, 3, 3])
    """

    plain = LocallyConnected2d
    unit_dim = None
    output_dim = 0

    @override
    def forward(self, input: Tensor, *args: Any) -> Tensor:
        if input.dim() == 3:
            return super().forward(input.unsqueeze(0)).squeeze(0)
        return super().forward(input)

    @override
    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        return self.padded(x), self.geometry

    @override
    def unbordered(self, features: torch.Size, positions: int | None = None) -> tuple[torch.Size, Geometry]:
        # Positions share no weights, so all of them have to be there.
        sizes = (n + sum(side) for n, side in zip(features[1:], self.sides, strict=True))
        return torch.Size([features[0], *sizes]), self.geometry

    @override
    def transmit(
        self, x: Float[Tensor, "n c h w"], weight: Tensor, bias: Tensor | None, geometry: Geometry = ()
    ) -> Float[Tensor, "n o oh ow"]:
        if not geometry:
            x, geometry = self.prepare(x)
        return locally_connected.transmit(x, weight, bias, *geometry)

    @override
    def feed_back(
        self, delta: Float[Tensor, "n o oh ow"], feedback: Tensor, shape: torch.Size, geometry: Geometry = ()
    ) -> Float[Tensor, "n c h w"]:
        if geometry:
            return locally_connected.feed_back(delta, feedback, shape, *geometry)
        # `shape` is that of the layer's own input: go back through its padding as well.
        with torch.enable_grad():
            x = delta.new_zeros(shape).requires_grad_()
            padded, geometry = self.prepare(x)
        signal = locally_connected.feed_back(delta, feedback, padded.shape, *geometry)
        return signal if padded is x else torch.autograd.grad(padded, x, signal)[0]

    @override
    def hebbian(
        self, x: Float[Tensor, "n c h w"], delta: Float[Tensor, "n o oh ow"], geometry: Geometry = ()
    ) -> Float[Tensor, "o oh ow i kh kw"]:
        if not geometry:
            x, geometry = self.prepare(x)
        return locally_connected.hebbian(x, delta, *geometry)

    @override
    def respond(self, x, delta, feedback, shape, geometry, need_weight, need_bias):
        signal, product, _ = super().respond(x, delta, feedback, shape, geometry, need_weight, False)
        return signal, product, delta.sum(0) if need_bias else None

    @override
    def fans(self) -> tuple[int, int]:
        outward, _, _, inward, *kernel = self.weight_now.shape
        return inward * math.prod(kernel), outward // self.copies * math.prod(kernel)
