"""Figures 4 to 7 and 10: networks with shared weights, by all rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from typing_extensions import override

import apical
from apical.papers import vision
from apical.papers.amit2019.training import (
    Cifar,
    attached,
    correlations_of,
    example_of,
    split_up,
    tied,
    training_of,
)
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Task
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record

CLOSE, FAR = 5.0, 10.0
"""Points of error that count as close, and as much."""


def layer_names(model: nn.Module) -> dict[str, str]:
    """Name of each synapse -> what curves call it, counted from the input."""
    return {name: f"layer {number}" for number, name in enumerate(apical.learner_of(model).synapses, 1)}


@dataclass(frozen=True, kw_only=True)
class Tied(Cifar):
    """Networks by rules; several seeds are trained side by side. (On a CPU in bfloat16, one by one is quicker.)

    Args:
        shows: parts of the outcome: "errors", "curves", "correlations". statements: what is judged, by test errors ("RULE"),
            validation errors ("curve, RULE") and correlations at the end ("correlations, RULE").
        family: of the runs.
    """

    shows: tuple[str, ...]
    statements: tuple[Statement, ...]
    family: str

    @property
    @override
    def runs(self) -> str:
        return self.family

    @override
    def trained(self, task: Task) -> Record:
        net, label = task.condition.split(", ")
        example, (train, watched) = example_of(task.data), split_up(task.data)
        learners = [attached(tied(net, task.data, seed), label, seed, example) for seed in task.seeds]
        model, training = training_of(learners, label, train, task, example)
        correlations = correlations_of(model, label, task.seeds, layer_names(model))
        curves = vision.run(task, training, task.lengths["steps"], watched, more=correlations)
        return Record(curves=curves, numbers={"test error": training.errors(task.data.test)})

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        rows = [Row(f"{name}: test error", record.numbers["test error"], unit="%") for name, record in records.items()]
        panels = []
        for net in self.networks:
            own = {name.split(", ")[1]: one for name, one in records.items() if name.startswith(f"{net}, ")}
            panels += self._panels(net, own)
        return Outcome(rows=rows, claims=judge(self.statements, measured(records)), panels=panels)

    def _panels(self, net: str, records: Mapping[str, Record]) -> list[Panel]:
        panels = []
        if "errors" in self.shows and records:
            bars = [
                Line(label=rule, x=[rule], y=[vision.average(one.numbers["test error"])])
                for rule, one in records.items()
            ]
            panels.append(Panel(title=f"{net}, test error", y="test error (%)", lines=bars, kind="bars", low=0))
        if "curves" in self.shows and records:
            lines = [
                Line.of(f"{rule}, {split}", one.curves[f"{split} error"], dashed=split == "validation")
                for rule, one in records.items()
                for split in ("training", "validation")
            ]
            panels.append(Panel(title=f"{net}, errors", x="epochs", y="error (%)", lines=lines, low=0))
        if "correlations" in self.shows:
            panels += correlation_panels(net, records)
        return panels


def correlation_panels(title: str, records: Mapping[str, Record]) -> list[Panel]:
    """A panel for each rule with the correlation of W and R in every layer."""
    panels = []
    for rule, record in records.items():
        curves = {name: one for name, one in record.curves.items() if name.startswith("correlation, ")}
        lines = [Line.of(name.removeprefix("correlation, "), one) for name, one in curves.items()]
        if lines:
            panels.append(Panel(title=f"{title}, {rule}", x="epochs", y="correlation of W and R", lines=lines, high=1))
    return panels


def measured(records: Mapping[str, Record]) -> dict[str, object]:
    """Values that statements speak of, by condition."""
    values: dict[str, object] = {}
    for name, record in records.items():
        values[name] = record.numbers["test error"]
        values[f"curve, {name}"] = record.curves["validation error"]
        ends = {key: one.last for key, one in record.curves.items() if key.startswith("correlation, ")}
        if ends:
            values[f"correlations, {name}"] = {key.removeprefix("correlation, "): end for key, end in ends.items()}
    return values


def gap(one: Curve, other: Curve) -> float:
    """How far the second curve lies above the first, in points, on average over training; without the start."""
    n = min(len(one.x), len(other.x))
    return float(np.nanmean(other.mean[1:n] - one.mean[1:n])) if n > 1 else float("nan")


def within(one: Sequence[float], other: Sequence[float], points: float) -> bool:
    """Whether the means of two errors are at most so many points apart."""
    return abs(vision.average(one) - vision.average(other)) <= points


def much_above(one: Sequence[float], other: Sequence[float], points: float = FAR) -> bool:
    """Whether the mean of the second error is more than so many points above that of the first."""
    return vision.average(other) - vision.average(one) > points


def named(*names: str) -> Callable[..., str]:
    """The evidence of a statement that speaks of the errors of these names."""
    return lambda *errors: vision.listed(dict(zip(names, errors, strict=True)))


def ordered(text: str, first: str, second: str) -> Statement:
    """The statement that `first` has less error than `second`."""
    return Statement(text, (first, second), vision.below, named(first, second))


def _gaps(*curves: Curve) -> str:
    return f"validation error on average {gap(*curves):.2f} points apart"
