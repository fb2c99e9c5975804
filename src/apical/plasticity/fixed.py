"""Fixed random feedback (lillicrap2016; nokland2016)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.per_copy import PER_COPY
from apical.plasticity.base import Plasticity, keep_buffer
from apical.plasticity.initialization import Init, draw_for


@dataclass(frozen=True)
class Fixed(Plasticity):
    """Feedback drawn once and never changed (lillicrap2016, feedback alignment; nokland2016, direct feedback alignment).

    init: "weights", a name in `INITS`, or a function that fills a tensor in place.
    """

    name: ClassVar[str] = "fixed"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise", "direct", "indirect"})
    init: Init = field(default="weights", metadata=PER_COPY)

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        keep_buffer(owner, "feedback", draw_for(owner, self.init, shape, generator))

    @override
    def keeps(self, owner: nn.Module) -> Tensor | None:
        return owner._buffers["feedback"]

    @override
    def store(self, owner: nn.Module, value: Tensor) -> None:
        # Like any buffer that is set, an alias; audit tells if it is one of the weights.
        keep_buffer(owner, "feedback", value.detach().to(owner._buffers["feedback"]))
