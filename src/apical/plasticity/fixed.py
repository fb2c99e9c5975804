"""Fixed random feedback (lillicrap2016; nokland2016)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from apical.per_copy import PER_COPY
from apical.plasticity.base import Stored
from apical.plasticity.initialization import Init


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
