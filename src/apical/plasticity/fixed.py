"""Fixed random feedback (lillicrap2016; nokland2016)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from apical.per_copy import PER_COPY
from apical.plasticity.base import Stored, feedback_at
from apical.plasticity.initialization import Init
from apical.synapses.storage import keep


@dataclass(frozen=True)
class Fixed(Stored):
    """Feedback drawn once and never changed (lillicrap2016, feedback alignment; nokland2016, direct feedback alignment).

    Args:
        init: "weights", a name in `apical.plasticity.INITS`, or a function that fills a tensor in place.

    >>> import apical
    >>> apical.Rule("layer-wise", apical.Fixed("lillicrap2016")).plasticity.init
    'lillicrap2016'
    """

    name: ClassVar[str] = "fixed"
    pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise", "direct", "indirect"})
    init: Init = field(default="weights", metadata=PER_COPY)

    @override
    def store(self, owner: nn.Module, value: Tensor) -> None:
        # Like any buffer that is set, an alias; audit tells if it is one of the weights.
        keep(owner, "feedback", value.detach().to(feedback_at(owner)))
