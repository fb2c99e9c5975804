"""The records of a comparison: rules, runs, table and samples, and what pages compute from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

BASELINE = "bp"
NO_TRANSPORT = "nothing"


@dataclass(frozen=True)
class RuleEntry:
    """A compared rule: its name with options, its title and the works it is from."""

    name: str
    title: str
    cites: str = ""


@dataclass(frozen=True)
class Row:
    """A rule's line in the table. A value is None where it was not measured, or no run of the rule is finished.

    test_error_mean, test_error_sem: percent, over seeds. step_ratio: time per step over backpropagation's.
    angles: layer -> delta angle at the end, in degrees.
    """

    rule: str
    test_error_mean: float | None = None
    test_error_sem: float | None = None
    step_ratio: float | None = None
    transported: tuple[str, ...] = ()
    broadcast: str = ""
    angles: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Run:
    """One rule trained from one seed.

    `records` maps a step to the measures taken there, in the order of the steps. `result` is None while unfinished.
    """

    rule: str
    seed: int
    folder: str
    records: dict[int, dict[str, Any]]
    result: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """True if the run came to its end."""
        return self.result is not None

    @property
    def test_error(self) -> float | None:
        """The final test error in percent, or None."""
        return None if self.result is None else number(self.result.get("test_error"))

    @property
    def state(self) -> str:
        """How far the run is, in words: "finished", "unfinished, at epoch 3", "nothing measured yet"."""
        if self.finished:
            return "finished"
        if not self.records:
            return "nothing measured yet"
        step, record = list(self.records.items())[-1]
        epoch = number(record.get("epoch"))
        return f"unfinished, at step {step}" if epoch is None else f"unfinished, at epoch {epoch:g}"


@dataclass(frozen=True)
class Samples:
    """Test images as [H, W] or [C, H, W] lists of 0..255, with every rule's predictions."""

    images: list[Any]
    labels: list[int]
    predictions: dict[str, list[int]]
    class_names: list[str]

    def name_of(self, label: int) -> str:
        """The name of a class, or its number where it has none."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)


@dataclass(frozen=True)
class Band:
    """A measure over training: mean, lowest and highest seed at each point that all the seeds have."""

    seeds: tuple[int, ...]
    steps: list[int]
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Comparison:
    """Several rules trained on the same data with the same seeds, as `read` finds them in a folder.

    Everything that a page or figure shows is computed here, so all of them show the same numbers.
    """

    folder: Path
    command: str
    versions: dict[str, str]
    machine: str
    date: str
    data: dict[str, Any]
    network: str
    config: dict[str, Any]
    rules: tuple[RuleEntry, ...]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    table: tuple[Row, ...]
    samples: Samples | None

    @property
    def names(self) -> list[str]:
        """The rules' names, in the order in which they were compared."""
        return [entry.name for entry in self.rules]

    @property
    def ranking(self) -> list[Row]:
        """The table, lowest test error first, rules without one last."""
        return sorted(self.table, key=lambda row: (row.test_error_mean is None, row.test_error_mean or 0.0))

    @property
    def unfinished(self) -> list[Run]:
        """Runs without a result."""
        return [run for run in self.runs if not run.finished]

    @cached_property
    def axis(self) -> str:
        """The unit of training: "epoch", or "step" where some record has no epoch."""
        every = all(number(record.get("epoch")) is not None for run in self.runs for record in run.records.values())
        return "epoch" if every else "step"

    @property
    def layers(self) -> list[str]:
        """The synapses whose angles were measured, from the input on."""
        seen: dict[str, None] = {}
        for run in self.runs:
            for record in run.records.values():
                seen.update(dict.fromkeys(record.get("alignment", {})))
        return list(seen)

    @property
    def length(self) -> float | None:
        """The length of the longest run so far, in units of `axis`; None where nothing was measured."""
        last = [self._x(run, step) for run in self.runs for step in list(run.records)[-1:]]
        return max(last, default=None)

    def title(self, rule: str) -> str:
        """A rule's title."""
        return next(entry.title for entry in self.rules if entry.name == rule)

    def counted(self, rule: str) -> list[Run]:
        """The runs that a rule's mean is over: the finished ones, or where there is none those that have begun.

        A seed that drops out half way would bend the mean, so unfinished runs never mix with finished ones.
        """
        runs = [run for run in self.runs if run.rule == rule and run.records]
        return [run for run in runs if run.finished] or runs

    def left_out(self, rule: str) -> list[Run]:
        """The runs that have begun and that the rule's mean leaves out."""
        counted = self.counted(rule)
        return [run for run in self.runs if run.rule == rule and run.records and run not in counted]

    def track(self, run: Run, *measure: str) -> dict[int, float]:
        """One measure of one run: step -> value, where it is a finite number. `measure` is the path into a record."""
        values = {step: _dig(record, measure) for step, record in run.records.items()}
        return {step: value for step, value in values.items() if value is not None}

    def positions(self, run: Run, steps: list[int]) -> list[float]:
        """Steps in the units of `axis`."""
        return [self._x(run, step) for step in steps]

    def band(self, rule: str, *measure: str) -> Band | None:
        """A measure of a rule over its counted runs; None where nothing was measured.

        >>> comparison.band("fa", "alignment", "layers.2", "delta_angle").mean  # doctest: +SKIP
        """
        tracks = [(run, track) for run in self.counted(rule) if (track := self.track(run, *measure))]
        if not tracks:
            return None
        steps = sorted(set.intersection(*(set(track) for _, track in tracks)))
        if not steps:
            return None
        columns = [[track[step] for _, track in tracks] for step in steps]
        return Band(
            seeds=tuple(run.seed for run, _ in tracks),
            steps=steps,
            x=self.positions(tracks[0][0], steps),
            mean=[math.fsum(column) / len(column) for column in columns],
            low=[min(column) for column in columns],
            high=[max(column) for column in columns],
        )

    def _x(self, run: Run, step: int) -> float:
        return float(run.records[step]["epoch"]) if self.axis == "epoch" else float(step)


def number(value: Any) -> float | None:
    """A finite number, or None. A run that diverges writes NaN; it has no place on an axis."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _dig(record: dict[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return number(value)
