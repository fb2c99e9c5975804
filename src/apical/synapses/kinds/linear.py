"""Linear layers as synapses."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from apical.synapses.products import affine, product
from apical.synapses.synapse import Synapse

HALVES = (torch.bfloat16, torch.float16)


class LinearSynapse(Synapse, nn.Linear):
    """`nn.Linear` with any leading dimensions: x [*, in], y [*, out], W and B [out, in].

    >>> import apical, torch
    >>> layer = torch.nn.Linear(4, 3)
    >>> apical.attach(layer, apical.rule("fa", track=True)).synapses[""].feedback.shape
    torch.Size([3, 4])
    """

    plain = nn.Linear
    fuses = True
    kernel = "linear"
    rows = True
    output_dim = 0

    @override
    def infer(self, input: Tensor, *args: Any) -> Tensor:
        # To the last bit what a pass with a graph gives: node perturbation compares the two.
        return self.transmit(input, self.weight, self.bias)

    @override
    def transmit(self, x: Float[Tensor, "*n i"], weight, bias, geometry=()) -> Float[Tensor, "*n o"]:
        return affine(x, weight, bias)

    @override
    def feed_back(self, delta: Float[Tensor, "*n o"], feedback, shape, geometry=()) -> Float[Tensor, "*n i"]:
        return product(delta, feedback) if delta.dim() == 2 else torch.matmul(delta, feedback)

    @override
    def add_hebbian(self, target, x, delta, beta, alpha):
        if target.dtype == x.dtype:
            # Not addmm_, which PyTorch's FlopCounterMode does not know.
            torch.addmm(target, delta.t(), x, beta=beta, alpha=alpha, out=target)
        else:
            target.mul_(beta).add_(self.hebbian(x, delta), alpha=alpha)

    @override
    def hebbian(self, x: Float[Tensor, "*n i"], delta: Float[Tensor, "*n o"], geometry=()) -> Float[Tensor, "o i"]:
        if x.dim() != 2:
            x, delta = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
        weight = self.weight_now
        if x.is_cuda and x.dtype in HALVES and weight.dtype == torch.float32 and not torch.compiler.is_compiling():
            # As autograd would cast it afterwards, in a pass over memory that takes as long as the product.
            return torch.mm(delta.t(), x, out_dtype=torch.float32)
        if not self.large:
            return product(delta.t(), x)
        return torch.mm(delta.t(), x, out=self.memory("product", weight) if x.dtype == weight.dtype else None)
