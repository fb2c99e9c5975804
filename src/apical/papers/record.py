"""Records of what a condition measured: curves over training, final numbers, arrays for pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Curve:
    """A measure over training, for several seeds.

    Args:
        x: steps, epochs, or whatever training is counted in: [points].
        y: [seeds][points]; not-a-number where a run had stopped already.

    >>> error = Curve([0, 100, 200], [[0.9, 0.5, 0.25], [0.9, 0.7, float("nan")]])
    >>> error.last
    [0.25, 0.7]
    """

    x: Sequence[float]
    y: Sequence[Sequence[float]]

    @property
    def values(self) -> np.ndarray:
        """The values as an array [seeds, points]."""
        return np.asarray(self.y, dtype=float)

    @property
    def mean(self) -> np.ndarray:
        """The mean over seeds at every point [points]; not-a-number where one of them had stopped."""
        return self.values.mean(0)

    @property
    def last(self) -> list[float]:
        """Every seed's last value that is a number."""
        return [next((v for v in reversed(list(row)) if math.isfinite(v)), math.nan) for row in self.y]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The measurements of one condition, as a run folder keeps them.

    Args:
        curves: name -> curve. numbers: name -> value per seed. arrays: name -> anything JSON can hold, for pictures.
        seeds, seconds, made: filled in by `reproduce`; `made` says of every run what it was made by, see `provenance`.

    >>> record = Record(curves={"error": Curve([0, 1], [[0.9, 0.2]])}, numbers={"epochs": [1.0]}, seeds=[3])
    >>> Record.of(record.asdict()) == record
    True
    """

    curves: Mapping[str, Curve] = field(default_factory=dict)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    arrays: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    seconds: float = 0.0
    made: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def asdict(self) -> dict[str, Any]:
        """The record as plain dicts and lists for JSON, in which not-a-number is null."""
        return _nulled(asdict(self))

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Record:
        """The record that `asdict` wrote."""
        return Record(
            curves={k: Curve(_numbers(c["x"]), [_numbers(row) for row in c["y"]]) for k, c in plain["curves"].items()},
            numbers={k: _numbers(v) for k, v in plain["numbers"].items()},
            arrays=plain["arrays"],
            seeds=plain["seeds"],
            seconds=plain["seconds"],
            made=plain.get("made", [{}]),  # Of records from before this was kept, nothing is known.
        )

    @staticmethod
    def joined(records: Sequence[Record]) -> Record:
        """Records of one condition from different seeds as one; the first one's arrays. A shorter curve is filled up with nan."""
        first = records[0]
        curves = {}
        for name in first.curves:
            longest = max((r.curves[name] for r in records), key=lambda c: len(c.x))
            rows = [[*row, *[math.nan] * (len(longest.x) - len(row))] for r in records for row in r.curves[name].y]
            curves[name] = Curve(longest.x, rows)
        return Record(
            curves=curves,
            numbers={name: [v for r in records for v in r.numbers[name]] for name in first.numbers},
            arrays=first.arrays,
            seeds=[seed for r in records for seed in r.seeds],
            seconds=sum(r.seconds for r in records),
            made=[one for r in records for one in r.made],
        )


def _nulled(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _nulled(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _nulled(value.tolist())
    return value


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
