"""Feedback that learns with the forward weights, by the same product (akrout2019 Kolen-Pollack; amit2019 URFB)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from apical.checks import number
from apical.per_copy import PER_COPY, PerCopy, spread
from apical.plasticity.base import Trained
from apical.plasticity.initialization import Init


@dataclass(frozen=True)
class Hebbian(Trained):
    """B receives epsilon times the gradient of W, in the same backward pass (akrout2019 eq. 17; amit2019 section 3).

    Layer-wise: B's gradient is epsilon delta^T x. Direct: D's gradient is epsilon e^T x, for the output error e and the
    synapse's input x. The optimizer that moves W moves B too, so rate, momentum and weight decay are equal for both.

    Args:
        epsilon: 1 for Kolen-Pollack and URFB, 0 for feedback that stands still, in between for amit2019's interpolation.
        init: "weights", a name in `apical.plasticity.INITS`, or a function that fills a tensor in place.

    Raises:
        ValueError: if epsilon is no number of at least 0.

    >>> import apical
    >>> apical.rule("urfb", epsilon=0.5).plasticity
    Hebbian(epsilon=0.5, init='amit2019')
    """

    name: ClassVar[str] = "hebbian"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise", "direct"})
    epsilon: float = field(default=1.0, metadata=PER_COPY)
    init: Init = field(default="weights", metadata=PER_COPY)

    def __post_init__(self) -> None:
        number("epsilon", self.epsilon, least=0)

    @override
    def increment(self, product: Tensor | None) -> Tensor | None:
        return product if product is None or self.follows_weights else product * spread(self.epsilon, product)

    @property
    @override
    def follows_weights(self) -> bool:
        return not isinstance(self.epsilon, PerCopy) and self.epsilon == 1
