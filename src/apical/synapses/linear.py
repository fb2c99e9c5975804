"""Linear layers as synapses."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from apical.synapses.products import affine, product
from apical.synapses.synapse import Synapse


class LinearSynapse(Synapse, nn.Linear):
    """`nn.Linear` with any leading dimensions: x [*, in], y [*, out], W and B [out, in]."""

    plain = nn.Linear
    fuses = True
    rows = True

    def infer(self, input: Tensor, *args: Any) -> Tensor:  # noqa: D102
        # To the last bit what a pass with a graph gives: node perturbation compares the two.
        return self.transmit(input, self.weight, self.bias)

    def transmit(self, x: Float[Tensor, "*n i"], weight, bias, geometry=()) -> Float[Tensor, "*n o"]:  # noqa: D102
        return affine(x, weight, bias)

    def feed_back(self, delta: Float[Tensor, "*n o"], feedback, shape, geometry=()) -> Float[Tensor, "*n i"]:  # noqa: D102
        return product(delta, feedback) if delta.dim() == 2 else torch.matmul(delta, feedback)

    def add_hebbian(self, target, x, delta, beta, alpha):  # noqa: D102
        target.addmm_(delta.t(), x, beta=beta, alpha=alpha)

    def hebbian(self, x: Float[Tensor, "*n i"], delta: Float[Tensor, "*n o"], geometry=()) -> Float[Tensor, "o i"]:  # noqa: D102
        if x.dim() != 2:
            x, delta = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
        if not self.large:
            return product(delta.t(), x)
        return torch.mm(delta.t(), x, out=self.memory("product", self.weight) if x.dtype == self.weight.dtype else None)
