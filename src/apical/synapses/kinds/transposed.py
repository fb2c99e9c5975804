"""Linear layers whose weights are stored the other way round, [in, out], as synapses."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from apical.synapses.products import affine, product
from apical.synapses.synapse import Geometry, Synapse


class TransposedLinearSynapse(Synapse):
    """A linear layer with any leading dimensions: x [*, in], y = x W + b [*, out], W and B [in, out].

    Derive a kind from it and from the plain layer, and register that with `apical.register_synapse`.
    """

    fuses = True
    inward_first = True
    output_dim = 1

    @override
    def infer(self, input: Tensor, *args: Any) -> Tensor:
        return self.transmit(input, self.weight, self.bias)

    @override
    def transmit(self, x: Float[Tensor, "*n i"], weight, bias, geometry: Geometry = ()) -> Float[Tensor, "*n o"]:
        return affine(x, weight.t(), bias)

    @override
    def feed_back(
        self, delta: Float[Tensor, "*n o"], feedback, shape: torch.Size, geometry: Geometry = ()
    ) -> Float[Tensor, "*n i"]:
        return product(delta, feedback.t()) if delta.dim() == 2 else torch.matmul(delta, feedback.t())

    @override
    def hebbian(self, x: Float[Tensor, "*n i"], delta: Float[Tensor, "*n o"], geometry=()) -> Float[Tensor, "i o"]:
        return product(x.reshape(-1, x.shape[-1]).t(), delta.reshape(-1, delta.shape[-1]))

    @override
    def add_hebbian(self, target: Tensor, x: Tensor, delta: Tensor, beta: float, alpha: float) -> None:
        target.addmm_(x.t(), delta, beta=beta, alpha=alpha)

    @override
    def fans(self) -> tuple[int, int]:
        inward, outward = self.weight.shape
        return inward, outward


@cache
def conv1d_of_transformers(plain: type[nn.Module]) -> type[Synapse]:
    """The kind for `Conv1D` of Hugging Face's transformers (GPT-2), made when it is first met."""
    names = {"plain": plain, "__module__": __name__, "__doc__": "`Conv1D` of transformers."}
    return type("Conv1DSynapse", (TransposedLinearSynapse, plain), names)


def __getattr__(name: str) -> Any:
    # Where pickle looks for the class.
    if name == "Conv1DSynapse":
        return conv1d_of_transformers(import_module("transformers.pytorch_utils").Conv1D)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
