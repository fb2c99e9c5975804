"""What a benchmark finds: measurements, and what could not be measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from apical.benchmark.steps import Mode
from apical.benchmark.timing import Timing


@dataclass(frozen=True)
class Measurement:
    """The measurement of one rule's step on one network.

    peak_memory: MiB. memory_ratio: peak memory over the plain step's.
    share: time of the floor over the step's time, 1 where a step takes no longer than its matrix products.
    mode: how the step ran, and the plain one that it is compared with.
    throughput: per second, of `unit`: images, tokens (every position of a sequence is one), or samples.
    """

    network: str
    batch: int
    rule: str
    timing: Timing
    peak_memory: float
    memory_ratio: float
    share: float = math.nan
    mode: Mode = "eager"
    throughput: float = math.nan
    unit: str = "samples"

    def asdict(self) -> dict[str, Any]:
        """The measurement as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Missing:
    """A rule's step, or "plain" for all of a network's, that could not be timed: out of memory, refused, not compiled."""

    network: str
    mode: Mode
    rule: str
    error: str
