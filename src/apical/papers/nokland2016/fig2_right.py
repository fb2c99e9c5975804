"""Figure 2, right: errors by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from apical.papers.experiment import Task
from apical.papers.nokland2016.tables import (
    MNIST_OPEN,
    OPEN,
    RULES,
    TABLE1,
    TWO_BY_800,
    Table,
    distance,
    errors_of,
    rows_of,
)
from apical.papers.nokland2016.training import MNIST_RATE
from apical.papers.outcome import Claim, Line, Outcome, Panel
from apical.papers.record import Curve, Record


@dataclass(frozen=True, kw_only=True)
class Curves(Table):
    """Errors by epoch of one network."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """The rules."""
        return RULES

    def run(self, task: Task) -> Record:
        """Train the one network."""
        return self.train(task, self.rows[0].net, task.condition)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """Ours beside the table's row, the curves, and whether they are alike."""
        (row,) = self.rows
        rows = [one for rule, record in records.items() for one in rows_of(rule, record, getattr(row, rule))]
        test = errors_of(records, "test error")
        claims = []
        if {"bp", "dfa"} <= test.keys():
            apart = _furthest(records["bp"].curves["test error"], records["dfa"].curves["test error"])
            claims.append(
                Claim(
                    "BP and DFA have similar learning curves (here: mean test errors within 1 % after every epoch from the fifth "
                    "on, and within 0.3 % in the end)",
                    apart <= 1 and distance(test["dfa"], test["bp"]) <= 0.3,
                    f"furthest apart {apart:.2f} %; in the end "
                    + ", ".join(f"{rule} {test[rule]:.2f} %" for rule in test),
                )
            )
        panels = [
            Panel(
                title=name,
                x="epoch",
                y="error [%]",
                lines=[Line.of(rule, record.curves[name]) for rule, record in records.items()],
                low=0,
            )
            for name in ("train error", "test error")
        ]
        return Outcome(rows=rows, claims=claims, panels=panels)


def _furthest(a: Curve, b: Curve, first: float = 5) -> float:
    """The largest distance between two curves' means, where both have values and x is at least `first`."""
    n = min(len(a.x), len(b.x))
    late = np.asarray(a.x[:n]) >= min(first, a.x[n - 1])
    means = [np.nanmean(curve.values[:, :n][:, late], axis=0) for curve in (a, b)]
    return float(np.abs(means[0] - means[1]).max())


FIG2_RIGHT = Curves(
    name="nokland2016/fig2-right",
    title="Errors by epoch, 2x800 tanh on MNIST",
    source="Figure 2, right",
    length=TABLE1.length,
    seeds=3,
    minutes=170,
    data="ylecun/mnist",
    together=False,
    rate=MNIST_RATE,
    rows=(TWO_BY_800,),
    readings=(*OPEN, *MNIST_OPEN, "FA is drawn as well; the caption does not say which rules are shown."),
)
