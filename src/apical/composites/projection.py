"""One of the linear maps of a composite layer, as a layer of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from apical.synapses.kinds.linear import LinearSynapse
from apical.synapses.registry import register_synapse
from apical.synapses.synapse import Geometry


class Projection(nn.Linear):
    """A linear map whose parameters another module keeps, under names of its own, as `nn.LSTM` keeps "weight_ih_l0".

    Parameters and state dict of the network stay those of the plain one.

    Args:
        keeper: the module that keeps them. weight: name of the matrix [out, in] there. bias: of the vector [out], if any.
    """

    def __init__(self, keeper: nn.Module, weight: str, bias: str | None = None) -> None:
        nn.Module.__init__(self)
        self.kept_as = (weight, bias)
        self.link(keeper)

    def link(self, keeper: nn.Module) -> None:
        """Take the parameters that `keeper` has now: loading, or moving to another device, may give it others."""
        for name, kept_as in zip(("weight", "bias"), self.kept_as, strict=True):
            self._parameters[name] = None if kept_as is None else keeper._parameters[kept_as]
        self.out_features, self.in_features = self.weight.shape[0], self.weight[0].numel()

    @override
    def forward(self, input: Tensor, *rows: int) -> Tensor:
        """The output, or those of its units from `rows[0]` to `rows[1]` alone."""
        if not rows:
            return super().forward(input)
        return F.linear(input, self.weight[slice(*rows)], None if self.bias is None else self.bias[slice(*rows)])

    @override
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            destination.pop(prefix + name, None)

    @override
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, meta: Any, strict: bool, missing_keys: Any, unexpected: Any, errors: Any
    ) -> None:
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, meta, strict, missing, unexpected, errors)
        missing_keys += [key for key in missing if key not in (f"{prefix}weight", f"{prefix}bias")]


class ProjectionSynapse(Projection, LinearSynapse):
    """A `Projection` that learns by a rule: x [*, in], y [*, out], W and B [out, in]."""

    plain = Projection

    @override
    def forward(self, input: Tensor, *args: Any) -> Tensor:
        return LinearSynapse.forward(self, input, *args)

    @override
    def infer(self, input: Tensor, *args: Any) -> Tensor:
        return self.transmit(input, self.weight, self.bias, args)

    @override
    def prepare(self, x: Tensor, *args: Any) -> tuple[Tensor, Geometry]:
        return x, args

    @override
    def transmit(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry = ()) -> Tensor:
        if geometry:
            weight, bias = weight[slice(*geometry)], None if bias is None else bias[slice(*geometry)]
        return super().transmit(x, weight, bias)

    @override
    def feed_back(self, delta: Tensor, feedback: Tensor, shape: torch.Size, geometry: Geometry = ()) -> Tensor:
        return super().feed_back(delta, feedback[slice(*geometry)] if geometry else feedback, shape)

    @override
    def hebbian(self, x: Tensor, delta: Tensor, geometry: Geometry = ()) -> Tensor:
        if not geometry:
            return super().hebbian(x, delta)
        product = x.new_zeros(self.weight.shape)
        product[slice(*geometry)] = delta.reshape(-1, delta.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        return product

    @override
    def respond(
        self,
        x: Tensor | None,
        delta: Tensor,
        feedback: Tensor | None,
        shape: torch.Size,
        geometry: Geometry,
        need_weight: bool,
        need_bias: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        signal, product, bias = super().respond(x, delta, feedback, shape, geometry, need_weight, need_bias)
        if geometry and bias is not None:
            own = bias
            bias = own.new_zeros(self.out_features)
            bias[slice(*geometry)] = own
        return signal, product, bias


register_synapse(Projection, ProjectionSynapse)
