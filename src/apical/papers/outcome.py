"""The outcome of an experiment: rows of ours beside theirs, claims that hold or do not, and the paper's figure from our data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from apical.papers.record import Curve


@dataclass(frozen=True)
class Published:
    """A number as a paper gives it.

    Args:
        value: as printed. spread: its ±, where there is one. tag: where it comes from, P printed, C code, N notebook or plot,
            T third party, M from memory (reference.md, section 0). to: where the source gives a range, its upper end; `value` is
            the lower one.

    >>> Published(1.74, spread=0.08)
    Published(value=1.74, spread=0.08, tag='P', to=None)
    """

    value: float
    spread: float | None = None
    tag: Literal["P", "C", "N", "T", "M"] = "P"
    to: float | None = None


@dataclass(frozen=True)
class Row:
    """A quantity, ours beside theirs.

    Args:
        label: what is measured, under which condition. ours: a value per seed. published: theirs, if there is a number.
        unit: "%", "°" or nothing. within: how far ours may be from theirs to agree, whatever the noise; None: 10 percent.

    >>> row = Row("test error, dfa", [1.70, 1.80], Published(1.74, spread=0.08), "%")
    >>> row.mean, row.agrees
    (1.75, True)
    """

    label: str
    ours: Sequence[float]
    published: Published | None = None
    unit: str = ""
    within: float | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds; not-a-number if there are none."""
        return float(np.mean(self.ours)) if len(self.ours) else math.nan

    @property
    def sem(self) -> float | None:
        """The standard error of the mean; None for a single seed."""
        return float(np.std(self.ours, ddof=1) / math.sqrt(len(self.ours))) if len(self.ours) > 1 else None

    @property
    def agrees(self) -> bool | None:
        """True if ours lies within two standard errors of both together, or within `within`, of theirs; None without a source.

        Ours counts up to theirs or half of `within`: the more our seeds differ, the more would agree otherwise.
        """
        theirs = self.published
        if theirs is None or theirs.tag == "M":
            return None
        if not math.isfinite(self.mean):
            return False
        highest = theirs.value if theirs.to is None else theirs.to
        apart = max(theirs.value - self.mean, self.mean - highest, 0.0)
        spread = theirs.spread or 0.0
        least = 0.1 * max(abs(theirs.value), abs(highest)) if self.within is None else self.within
        own = min(self.sem or 0.0, max(spread, least / 2))
        return apart <= max(2 * math.hypot(own, spread), least)


Kind = Literal["paper", "derived", "ours"]
"""Whose a statement is: the paper's; one that follows from its equations or tables, though it does not say it (identities among
them); or ours: a control, a third party's, or a statement of the paper judged once more, in a weaker form or another setting."""


@dataclass(frozen=True)
class Claim:
    """A statement, and whether our runs show it.

    Args:
        text: the statement. holds: whether it is so here; None: undecided, within the runs' own error. evidence: the numbers that
            say so. kind: whose statement it is.

    >>> Claim("Feedback alignment learns as quickly as backpropagation", True, "410 examples against 420 to 0.1").holds
    True
    """

    text: str
    holds: bool | None
    evidence: str
    kind: Kind = "paper"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve, set of points or row of bars.

    Args:
        label: as the legend has it; equal labels have one colour in all panels of a figure.
        x, y: of equal length; for bars x are words. spread: half-widths of the band or whisker around y.
        dashed: for a control, or what the paper printed.

    >>> Line.of("fa", Curve([0, 100], [[0.9, 0.5], [0.9, 0.25]])).y
    [0.9, 0.375]
    """

    label: str
    x: Sequence[float] | Sequence[str]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    dashed: bool = False

    @staticmethod
    def of(label: str, curve: Curve, *, dashed: bool = False) -> Line:
        """The line of a curve's mean over seeds, with the standard error as its band; points that no seed has are left out."""
        values = curve.values
        there = np.isfinite(values)
        count = there.sum(0)
        kept = count > 0
        mean = np.where(there, values, 0).sum(0)[kept] / count[kept]
        spread = None
        if len(values) > 1:
            squares = np.where(there[:, kept], (values[:, kept] - mean) ** 2, 0).sum(0)
            spread = np.sqrt(squares / np.maximum(count[kept] - 1, 1) / count[kept]).tolist()
        return Line(label=label, x=np.asarray(curve.x)[kept].tolist(), y=mean.tolist(), spread=spread, dashed=dashed)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One set of axes.

    Args:
        title: the paper's letter or a few words. x, y: axis labels with units. lines: what is drawn.
        kind: lines, points, bars (grouped, one group per word of x) or image.
        image: [H][W] or [H][W][3], shown from its lowest to its highest value, for kind "image".
        log_x, log_y: logarithmic axes. low, high: limits of y. marks: y of thin reference lines (90 degrees, chance, ...).

    >>> line = Line(label="fa", x=[0, 100], y=[90.0, 45.0])
    >>> Panel(title="b", x="examples", y="angle, °", lines=[line], low=0, high=100, marks=(90,)).kind
    'lines'
    """

    title: str
    x: str = ""
    y: str = ""
    lines: Sequence[Line] = ()
    kind: Literal["lines", "points", "bars", "image"] = "lines"
    image: Sequence[Sequence[float]] | None = None
    log_x: bool = False
    log_y: bool = False
    low: float | None = None
    high: float | None = None
    marks: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of an experiment: what its records show beside the paper.

    Args:
        rows: ours beside theirs. claims: the paper's statements, and ours. panels: the paper's figure, in its order.
        columns: panels per row. notes: what a reader has to know, e.g. an alternative reading that was tried and what it gave.

    >>> found = Outcome(claims=[Claim("the angle falls", True, "from 90 to 45 degrees")])
    >>> sum(claim.holds is True for claim in found.claims), len(found.rows)
    (1, 0)
    """

    rows: Sequence[Row] = ()
    claims: Sequence[Claim] = ()
    panels: Sequence[Panel] = ()
    columns: int = 2
    notes: Sequence[str] = ()
