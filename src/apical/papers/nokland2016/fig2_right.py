"""Figure 2, right: errors by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from apical.papers.claims import Statement, judge
from apical.papers.experiment import Task
from apical.papers.nokland2016.table1 import MNIST_OPEN, TABLE1, TWO_BY_800
from apical.papers.nokland2016.tables import OPEN, RULES, Entry, Table, distance, errors_of, rows_of
from apical.papers.nokland2016.training import MNIST_RATE
from apical.papers.outcome import Line, Outcome, Panel
from apical.papers.record import Curve, Record


def furthest(a: Curve, b: Curve, first: float = 5) -> float:
    """The largest distance between two curves' means, where both have values and x is at least `first`."""
    n = min(len(a.x), len(b.x))
    late = np.asarray(a.x[:n]) >= min(first, a.x[n - 1])
    means = [np.nanmean(curve.values[:, :n][:, late], axis=0) for curve in (a, b)]
    return float(np.abs(means[0] - means[1]).max())


ALIKE = (
    Statement(
        "BP and DFA have similar learning curves (here: mean test errors within 1 % after every epoch from the fifth "
        "on, and within 0.3 % in the end)",
        ("bp", "dfa", "in the end"),
        lambda bp, dfa, end: furthest(bp, dfa) <= 1 and distance(end["dfa"], end["bp"]) <= 0.3,
        lambda bp, dfa, end: (
            f"furthest apart {furthest(bp, dfa):.2f} %; in the end "
            + ", ".join(f"{rule} {error:.2f} %" for rule, error in end.items())
        ),
    ),
)
"""About test errors: the curve of each rule, and the last values."""


@dataclass(frozen=True, kw_only=True)
class Curves(Table):
    """Errors by epoch of one network."""

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return RULES

    @override
    def run(self, task: Task) -> Record:
        return self.train(task, Entry(self.rows[0].net, task.condition))

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        (row,) = self.rows
        rows = [one for rule, record in records.items() for one in rows_of(rule, record, row.cell(rule))]
        curves = {rule: record.curves["test error"] for rule, record in records.items()}
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
        claims = judge(ALIKE, {**curves, "in the end": errors_of(records, "test error")})
        return Outcome(rows=rows, claims=claims, panels=panels)


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
