"""Experiments that train image classifiers: a network, a rule and a recipe for each condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from typing_extensions import override

import apical
from apical.data import ImageData, held_out
from apical.data.augment import augmentations
from apical.data.prepared import prepared
from apical.papers.classifiers.training import ImageTraining, Recipe
from apical.papers.experiment import Experiment, Task, given
from apical.papers.outcome import Line, Panel
from apical.papers.record import Record


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A condition: a network under a rule.

    Args:
        network: a name in `apical.networks`. rule: with its numbers. recipe: how it learns. length: key of its number of steps.
    """

    network: str
    rule: apical.Rule
    recipe: Recipe
    length: str = "steps"


@dataclass(frozen=True, kw_only=True)
class ImageExperiment(Experiment):
    """Image classifiers, whose errors, and where asked for angles, are measured after each epoch.

    Args:
        entries: condition -> what learns. angles: whether the angles of every layer are measured.
        validation: the fraction of the training images that is held out; nothing is chosen by it. augment, normalize: see
            `apical.data.augment` and `apical.data.prepared`.
    """

    entries: Mapping[str, Entry]
    angles: bool
    validation: float | None = None
    augment: str = "flip+crop:padding=4"
    normalize: str = "own"

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(self.entries)

    @property
    @override
    def workers(self) -> int:
        return math.gcd(*(one.recipe.workers for one in self.entries.values()))

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        ready = self.divided(given(data))
        return {one.length: one.recipe.epochs * one.recipe.per_epoch(ready) for one in self.entries.values()}

    def divided(self, data: ImageData) -> ImageData:
        """The data with the validation split held out, always the same images."""
        return data if self.validation is None or data.validation is not None else held_out(data, self.validation)

    def prepared(self, data: ImageData) -> ImageData:
        """The data as networks see it: divided, augmented and normalized."""
        return prepared(self.divided(data), augmentations(self.augment), self.normalize)

    @override
    def run(self, task: Task) -> Record:
        entry, data = self.entries[task.condition], self.prepared(task.data)
        training = ImageTraining(
            entry.network, entry.rule, data, task.seeds, entry.recipe, task.lengths[entry.length], angles=self.angles
        )
        curves = training.course(task)
        return Record(curves=curves, numbers={"test error": curves["test error"].last})


def errors_of(records: Mapping[str, Record]) -> dict[str, float]:
    """Condition -> mean test error at the end, in %, under the name "test error, CONDITION"."""
    return {f"test error, {name}": fmean(one.numbers["test error"]) for name, one in records.items()}


def error_panels(records: Mapping[str, Record]) -> list[Panel]:
    """Test and train error over epochs, a line for each condition."""
    return [
        Panel(
            title=name,
            x="epochs",
            y=f"{name} (%)",
            lines=[Line.of(condition, record.curves[name]) for condition, record in records.items()],
        )
        for name in ("test error", "train error")
        if records
    ]
