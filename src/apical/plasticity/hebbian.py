"""Feedback that learns with the forward weights, by the same product (akrout2019 Kolen-Pollack; amit2019 URFB)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.per_copy import PER_COPY, spread
from apical.plasticity.base import Plasticity, keep_parameter
from apical.plasticity.initialization import Init, draw_for


@dataclass(frozen=True)
class Hebbian(Plasticity):
    """B receives epsilon times the gradient of W, in the same backward pass (akrout2019 eq. 17; amit2019 section 3).

    Layer-wise: B's gradient is epsilon delta^T x. Direct: D's gradient is epsilon e^T x, for the output error e and the
    synapse's input x. The optimizer that moves W moves B too, so rate, momentum and weight decay are equal for both.

    epsilon: 1 for Kolen-Pollack and URFB, 0 for feedback that stands still, in between for amit2019's interpolation.
    init: "weights", a name in `INITS`, or a function that fills a tensor in place.
    """

    name: ClassVar[str] = "hebbian"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise", "direct"})
    trainable: ClassVar[bool] = True
    epsilon: float = field(default=1.0, metadata=PER_COPY)
    init: Init = field(default="weights", metadata=PER_COPY)

    def __post_init__(self) -> None:
        if not (isinstance(self.epsilon, int | float) and 0 <= self.epsilon < float("inf")):
            raise ValueError(f"epsilon must be a number of at least 0, got {self.epsilon!r}")

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        weight = owner._parameters.get("weight")
        requires_grad = True if weight is None else weight.requires_grad
        keep_parameter(owner, "feedback", draw_for(owner, self.init, shape, generator), requires_grad=requires_grad)

    @override
    def keeps(self, owner: nn.Module) -> Tensor | None:
        return owner._parameters["feedback"]

    @override
    def store(self, owner: nn.Module, value: Tensor) -> None:
        # In place, so that an optimizer made before keeps hold of it.
        with torch.no_grad():
            owner._parameters["feedback"].copy_(value)  # type: ignore[union-attr]

    @override
    def increment(self, product: Tensor | None) -> Tensor | None:
        return product if product is None or self.epsilon == 1 else product * spread(self.epsilon, product)
