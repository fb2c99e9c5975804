"""Indirect feedback: the error enters at the first hidden layer only, and travels on through the forward weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from apical.papers.claims import Statement, judge
from apical.papers.experiment import Task
from apical.papers.nokland2016.training import MNIST_RATE, Net, Training, UntilStopped, start
from apical.papers.outcome import Line, Outcome, Panel, Published, Row
from apical.papers.record import Record


def percents(values: Iterable[float]) -> str:
    """The values, in words."""
    return ", ".join(f"{value:.3f}" for value in values) + " %"


GONE = (
    Statement(
        "IFA reaches a training error of 0 % (here: at most 0.01 %, by every seed)",
        ("least", "at the end"),
        lambda least, end: (least <= 0.01).all(),
        lambda least, end: f"least {percents(least)} by seed; at the end {percents(end)}",
    ),
)
"""About the training error, in %: the least that each seed came to, and the last."""


@dataclass(frozen=True, kw_only=True)
class IndirectFeedback(UntilStopped):
    """One network by "ifa", from random weights."""

    net: Net
    rate: float = MNIST_RATE  # [R]

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return ("ifa",)

    @override
    def run(self, task: Task) -> Record:
        (seed,) = task.seeds
        learner = start(self.net, task.condition, task.data, seed, zero=False)
        curves = Training(learner.model, task.data, task.seeds, rate=self.rate).course(task, task.lengths["steps"])
        numbers = {name: curve.last for name, curve in curves.items()}
        return Record(curves=curves, numbers={**numbers, "epochs": [curves["test error"].x[-1]]})

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        record = records["ifa"]
        train = record.numbers["train error"]
        # A step too far takes some of it back, so its least is what was reached.
        least = np.nanmin(record.curves["train error"].values, axis=1)
        panel = Panel(
            title="Indirect feedback alignment",
            x="epoch",
            y="error [%]",
            lines=[Line.of(name, record.curves[name]) for name in ("train error", "test error")],
            low=0,
        )
        rows = [
            Row("test error", record.numbers["test error"], Published(3.9), "%"),
            Row("least train error", least.tolist(), Published(0.0, to=0.01), "%", within=0.0),
            Row("train error at the end", train, unit="%"),
        ]
        return Outcome(rows=rows, claims=judge(GONE, {"least": least, "at the end": train}), panels=[panel], columns=1)


TEXT_IFA = IndirectFeedback(
    name="nokland2016/text-ifa",
    title="Indirect feedback alignment, 4x100 on MNIST",
    source="Section 4, text",
    length="until the training error is 0.01 %, at most 300 epochs",
    seeds=3,
    minutes=20,
    data="ylecun/mnist",
    together=False,
    net=Net(4, 100),  # tanh: [R]
    readings=(
        "tanh, the rate of the other MNIST networks (1e-4) and their stopping rule; the paper prints none of these here. At this "
        "rate, constant as the paper has it, a training error of a few hundredths of a percent goes up and down, once to 1 %.",
        "A training error of 0 % is read as what stops a run, 0.01 %.",
    ),
)
