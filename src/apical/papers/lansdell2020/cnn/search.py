"""The random search for NP's noise and rates."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import override

from apical.data import ImageData
from apical.papers import vision
from apical.papers.experiment import Rows, Task, given
from apical.papers.lansdell2020.cnn.tables import (
    BATCH,
    EPOCHS,
    FEEDBACK_RATE,
    NOISE,
    RATE,
    READINGS,
    Cnn,
    Rates,
    training_of,
)
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Record


def draws(count: int = 50) -> tuple[Rates, ...]:
    """The draws of the random search: logarithms uniform, c from 1e-4 to 1e-1, both rates from 1e-6 to 1e-3."""
    source = random.Random(0)

    def draw(low: float, high: float) -> float:
        return math.exp(source.uniform(math.log(low), math.log(high)))

    return tuple(Rates(draw(1e-4, 1e-1), draw(1e-6, 1e-3), draw(1e-6, 1e-3)) for _ in range(count))


@dataclass(frozen=True, kw_only=True)
class Search(Cnn):
    """The random search for NP's noise and rates, judged by a held-out tenth of the training images.

    Args:
        tries: what is tried, each a condition.
    """

    tries: tuple[Rates, ...]

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(f"draw {number}" for number in range(1, len(self.tries) + 1))

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"steps": self.epochs * vision.with_data(given(data), BATCH, 0.1)}

    @override
    def run(self, task: Task) -> Record:
        rates = self.tries[self.conditions.index(task.condition)]
        train, validation = vision.held_out(task.data.train)
        with vision.repeatable(task.seeds[0]):
            training = training_of(task, "np", rates, train, self.form)
            curves = vision.run(task, training, task.lengths["steps"], {"held-out": validation})
        return Record(
            curves=curves, numbers={"held-out accuracy": [100 - value for value in curves["held-out error"].last]}
        )

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        rates = dict(zip(self.conditions, self.tries, strict=True))
        rows = [
            Row(
                f"{name}, c {rates[name].noise:.3g}, rate {rates[name].weights:.3g}, of D {rates[name].feedback:.3g}: "
                "held-out accuracy",
                record.numbers["held-out accuracy"],
                unit="%",
            )
            for name, record in records.items()
        ]
        panels = [
            Panel(
                title=label,
                x=label,
                y="held-out accuracy (%)",
                kind="points",
                log_x=True,
                lines=[
                    Line(
                        label="np",
                        x=[getattr(rates[name], field) for name in records],
                        y=[vision.average(one.numbers["held-out accuracy"]) for one in records.values()],
                    )
                ],
            )
            for field, label in (("noise", "c"), ("weights", "rate of W"), ("feedback", "rate of D"))
        ]
        notes = []
        if records:
            best = max(records, key=lambda name: vision.average(records[name].numbers["held-out accuracy"]))
            notes.append(
                f"Best of {len(records)}: {best}. The released code's notebook has {NOISE}, {RATE} and {FEEDBACK_RATE} as its "
                "best, with 75.14 % of test accuracy."
            )
        return Outcome(rows=rows, panels=panels, notes=notes, columns=3)

    @override
    def claims_of(self, rows: Rows) -> list[Claim] | None:
        return None


SEARCH = Search(
    name="lansdell2020/search",
    title="50 random draws of NP's noise and rates, CIFAR-10",
    source="Released code; appendix C.4 names the search",
    length=f"{EPOCHS} epochs for each draw",
    seeds=1,
    minutes=250000,
    data="uoft-cs/cifar10",
    together=False,
    precisions=vision.PRECISIONS,
    readings=(
        *READINGS,
        "A tenth of the training images is held out, and draws are compared by it; the code compares test accuracies.",
    ),
    rules=("np",),
    printed={},
    family="lansdell2020/search",
    tries=draws(),
)
