"""Layers that compute their weights anew in every pass: weight and spectral normalization, standardisation, pruning.

The layer's own forward pass computes the weight and calls the product. The synapse stands in for that product alone: the signal
goes back through B, and the weight's gradient goes on through what the weight is made of.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from apical.synapses.function import SynapseFunction, apply
from apical.synapses.storage import CURRENT, kept
from apical.synapses.synapse import Geometry, Synapse

PRODUCTS: dict[Any, int] = {
    F.linear: 0,
    F.conv1d: 1,
    F.conv2d: 2,
    F.conv3d: 3,
    F.conv_transpose1d: 1,
    F.conv_transpose2d: 2,
    F.conv_transpose3d: 3,
}
"""Functions that layers call with their weights -> spatial dimensions."""
_TRANSPOSED = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


class ComputedWeight(Synapse):
    """A synapse whose layer computes its weight.

    Attributes:
        layer: the plain layer, whose forward pass calls the product.
    """

    computed = True
    fuses = False
    layer: ClassVar[type[nn.Module]]

    @override
    def forward(self, input: Tensor, *args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input, *args)
        if self.sentinel and (self.circuit.suspected or not torch.compiler.is_compiling()):
            self.circuit.look()
        if self.circuit.busy and not self.circuit.mine:
            self.circuit.refuse("a pass with gradients came to", self.label)
        x, feedback = self.pathway.enter(self, input)
        with _Product(self, feedback) as product:
            y = self.layer.forward(self, x, *args)
        if not product.made:
            raise RuntimeError(
                f"'{self.label}', a {self.layer.__name__}, made no product with its weights in this forward pass, so no rule "
                "could teach it"
            )
        return y

    @override
    def infer(self, input: Tensor, *args: Any) -> Tensor:
        return self.layer.forward(self, input, *args)

    def note(self, weight: Tensor) -> None:
        """Have `weight` for that of the newest pass."""
        vars(self)[CURRENT] = weight.detach()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kind = next(base for base in type(self).__mro__ if "plain" in vars(base))
        return _blank, (kind, self.layer), self.__getstate__() if hasattr(self, "__getstate__") else vars(self)


class _Product(TorchFunctionMode):
    """While open, the first product that is called is the synapse's."""

    def __init__(self, synapse: ComputedWeight, feedback: Tensor | None) -> None:
        super().__init__()
        self.synapse, self.feedback, self.made = synapse, feedback, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.made or func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        self.made = True
        return self._multiplied(PRODUCTS[func], func in _TRANSPOSED, *args, **(kwargs or {}))

    def _multiplied(
        self,
        spatial: int,
        transposed: bool,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        synapse, feedback = self.synapse, self.feedback
        synapse.note(weight)
        if feedback is not None and kept(synapse, "feedback") is None:
            feedback = synapse.plasticity.keeps(synapse)  # Of the weights as they are now.
        alone = spatial > 0 and input.dim() == spatial + 1
        x, geometry = input.unsqueeze(0) if alone else input, ()
        if spatial:
            x, geometry = _geometry(synapse, x, spatial, transposed, *args, **kwargs)
        y = apply(SynapseFunction, True)(x, weight, bias, feedback, synapse, geometry)
        return y.squeeze(0) if alone else y


def _geometry(
    synapse: Synapse,
    x: Tensor,
    spatial: int,
    transposed: bool,
    stride: Any = 1,
    padding: Any = 0,
    *rest: Any,
    **kwargs: Any,
) -> tuple[Tensor, Geometry]:
    if isinstance(padding, str):
        return synapse.prepare(x)
    names = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    found = {"output_padding": 0, "groups": 1, "dilation": 1, **dict(zip(names, rest, strict=False)), **kwargs}

    def each(value: Any) -> tuple[int, ...]:
        value = (value,) if isinstance(value, int) else tuple(value)
        return value * spatial if len(value) == 1 else value

    return x, (
        each(stride),
        each(padding),
        each(found["dilation"]),
        transposed,
        each(found["output_padding"]),
        found["groups"],
    )


@cache
def computed_kind(kind: type[Synapse], layer: type[nn.Module]) -> type[Synapse]:
    """The kind for a layer that computes the weights of a plain layer of which `kind` is the synapse."""
    names = {"layer": layer, "__module__": __name__, "__doc__": f"`{layer.__name__}`, which computes its weights."}
    bases = (ComputedWeight, kind) if layer in kind.__mro__ else (ComputedWeight, kind, layer)
    return type(f"Computed{kind.__name__}", bases, names)


def _blank(kind: type[Synapse], layer: type[nn.Module]) -> nn.Module:
    made = computed_kind(kind, layer)
    return made.__new__(made)
