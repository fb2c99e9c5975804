"""Bilinear layers as a linear map of the products of their inputs (`torch.nn.Bilinear`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from apical.composites.projection import Projection
from apical.composites.unfused import Unfused, unfuses
from apical.synapses.kinds.linear import LinearSynapse
from apical.synapses.registry import register_synapse
from apical.synapses.synapse import Geometry


class Contraction(Projection):
    """The linear map of a bilinear layer: x [*, in1 in2], y [*, out], W [out, in1, in2]."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class ContractionSynapse(Contraction, LinearSynapse):
    """A `Contraction` that learns by a rule; B [out, in1, in2]."""

    plain = Contraction
    rows = False

    @override
    def forward(self, input: Tensor, *args: Any) -> Tensor:
        return LinearSynapse.forward(self, input, *args)

    @override
    def infer(self, input: Tensor, *args: Any) -> Tensor:
        return self.transmit(input, self.weight, self.bias)

    @override
    def transmit(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        return super().transmit(x, weight.flatten(1), bias)

    @override
    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        return super().feed_back(delta, feedback.flatten(1), shape)

    @override
    def hebbian(self, x: Tensor, delta: Tensor, geometry: Geometry = ()) -> Tensor:
        return (delta.reshape(-1, delta.shape[-1]).t() @ x.reshape(-1, x.shape[-1])).view(self.weight.shape)

    @override
    def fans(self) -> tuple[int, int]:
        return self.in_features, self.out_features


register_synapse(Contraction, ContractionSynapse)


@unfuses
class UnfusedBilinear(Unfused, nn.Bilinear):
    """`nn.Bilinear` as a linear map, the child "products", of the products of the two inputs' units.

    The signal at the products goes on to either input times the other one, which is exact and local.
    """

    plain = nn.Bilinear
    products: Contraction

    @override
    def maps(self) -> Iterable[tuple[str, Projection]]:
        return [("products", Contraction(self, "weight", None if self.bias is None else "bias"))]

    @override
    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """Y = x1^T W x2 + b for each unit."""
        self.link()
        return self.products(torch.mul(input1.unsqueeze(-1), input2.unsqueeze(-2)).flatten(-2))
