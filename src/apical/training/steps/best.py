"""The best network of a run, by its error in a split, and how fast images pass."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from apical.training.metrics import MetricsLog

OF_A_NETWORK = ("step", "model", "learner", "average")
"""The entries of a run's state that its network is made of."""


class Best:
    """The first measurement of a run, after some step, that has the least error in a split.

    Args:
        split: "validation" or "test"; None: nothing is looked for. metrics: of the run.
    """

    def __init__(self, split: str | None, metrics: MetricsLog) -> None:
        self._split, self._metrics = split, metrics

    @property
    def line(self) -> dict[str, Any] | None:
        """The measurement, with step, epoch and error; None if there is none."""
        if self._split is None:
            return None
        key = f"{self._split}_error"
        best = least(self._metrics.read(), key)
        return best and {name: best[name] for name in ("step", "epoch", key)}

    def reached(self, step: int) -> bool:
        """Whether it is the measurement after `step`."""
        best = self.line
        return best is not None and best["step"] == step


def least(lines: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    """The first measurement after a step that has the least of `key`.

    >>> least([{"step": 0, "e": 1}, {"step": 5, "e": 9}, {"step": 8, "e": 7}, {"step": 9, "e": 7}], "e")
    {'step': 8, 'e': 7}
    """
    counted = [line for line in lines if line["step"] and line.get(key) is not None]
    return min(counted, key=lambda line: line[key], default=None)


class Speed:
    """Images, or windows of a text, per second, loading and all else between them included, but not measurements and checkpoints.

    shape: of a sample: (C, H, W), or (T,).

    >>> speed = Speed((3, 32, 32))
    >>> speed.start()
    >>> speed.rows += 64
    >>> speed.taken()["images_per_second"] > 0
    True
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self._unit = "windows" if len(shape) == 1 else "images"
        self.rows, self._since = 0, 0.0

    def start(self) -> None:
        """Count from now on."""
        self.rows, self._since = 0, time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, time does not count."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def taken(self) -> dict[str, float | None]:
        """Images per second since the start, under their name; None if none has passed."""
        speed = round(self.rows / (time.perf_counter() - self._since), 1) if self.rows else None
        return {f"{self._unit}_per_second": speed}
