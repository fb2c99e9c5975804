"""The views of figure 3 and table 2a: the table, curves, codes and reconstructions of the autoencoders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apical.papers.claims import Statement, judge
from apical.papers.experiment import Rows
from apical.papers.lansdell2020.common import mean
from apical.papers.lansdell2020.methods import METHODS, TUNED
from apical.papers.outcome import Claim, Kind, Line, Outcome, Panel, Published, Row
from apical.papers.record import Record

# Table 2a [P]: mean and standard error of the least test loss of an epoch.
TABLE = {
    "bp": Published(609.8, 14.4),
    "bp, noise": Published(536.8, 2.1),
    "adam": Published(533.3, 2.2),
    "adam, noise": Published(522.3, 0.4),
    "fa": Published(759.1, 3.3),
    "fa, noise": Published(768.2, 2.7),
    "dae": Published(539.8, 4.9),
    "np": Published(515.3, 4.1),
    "sg": Published(521.6, 2.3),
    "matched": Published(615.0, 0.4),
    "matched, noise": Published(629.9, 1.1),
}

NEIGHBOURS = 10
SHOWN = 4
"""Rows and columns of the images in a mosaic."""
CODES = 1000
"""Test images whose codes are looked at."""
SEPARATION = "neighbours in the code of one class"


def outcome(shows: tuple[str, ...], records: Mapping[str, Record]) -> Outcome:
    """The outcome, of the parts that `shows` names: "table", "curves", "codes", "reconstructions"."""
    rows, claims, panels = [], [], []
    if "table" in shows:
        rows += _table(records)
    if {"table", "curves"} & set(shows):
        claims += judge(LOSSES, _measured(records))
    if "curves" in shows:
        panels.append(_curves(records))
    if "codes" in shows:
        rows += [
            Row(
                f"test images whose neighbours in the code are of their class, {k}",
                record.numbers[SEPARATION],
                unit="%",
            )
            for k, record in records.items()
        ]
        found = {name: Estimate.of(record.numbers[SEPARATION]) for name, record in records.items()}
        claims += judge(SEPARATED, {**found, "all": found})
        panels += [_codes(name, record) for name, record in records.items()]
    if "reconstructions" in shows:
        panels += _reconstructions(records)
        claims += judge(SCRAMBLED, _recognised(records))
    return Outcome(rows=rows, claims=claims, panels=panels, columns=4 if shows == ("reconstructions",) else 2)


def _table(records: Mapping[str, Record]) -> list[Row]:
    rows = []
    for name, record in records.items():
        theirs, noisy = TABLE.get(TUNED.get(name, name)), "minimum of test loss, noise on" in record.numbers
        # Methods differ by less than a tenth.
        own, reported = "minimum of test loss", None if noisy else theirs
        rows.append(Row(f"least test loss, {name}", record.numbers[own], reported, within=0))
        if noisy:
            own = "minimum of test loss, noise on"
            rows.append(Row(f"least test loss, {name}, noise on", record.numbers[own], theirs, within=0))
    return rows


def claims_of(rows: Rows, methods: Sequence[str]) -> list[Claim] | None:
    """The claims about the least losses of methods, from the table's rows; None without any."""
    records = {}
    for name in methods:
        labels = {f"minimum of test loss{end}": f"least test loss, {name}{end}" for end in ("", ", noise on")}
        found = {number: rows[label] for number, label in labels.items() if label in rows}
        if "minimum of test loss" in found:
            records[name] = Record(numbers=found)
    return judge(LOSSES, _measured(records)) if records else None


def losses(record: Record) -> Sequence[float]:
    """Each seed's least test loss, of a noisy network with its noise on, as the code reports it [C]."""
    name = "minimum of test loss"
    return record.numbers.get(f"{name}, noise on", record.numbers[name])


@dataclass(frozen=True)
class Estimate:
    """The mean over seeds, and its standard error; infinite for a single seed, which tells nothing of it."""

    mean: float
    error: float

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """The estimate of a value per seed."""
        sem = Row("", values).sem
        return Estimate(mean(values), math.inf if sem is None else sem)

    def two_errors(self, other: Estimate) -> float:
        """Two standard errors of the difference."""
        return 2 * math.hypot(self.error, other.error)

    def below(self, other: Estimate) -> bool | None:
        """True if this is below another; None, undecided, within two standard errors of the difference."""
        return None if abs(self.mean - other.mean) <= self.two_errors(other) else self.mean < other.mean

    def beside(self, other: Estimate) -> str:
        """Both means, and two standard errors of their difference, in words."""
        two = self.two_errors(other)
        return f"{self.mean:.1f} and {other.mean:.1f}; two standard errors are {two:.1f}"


def _measured(records: Mapping[str, Record]) -> dict[str, Any]:
    """Values that the statements about losses speak of: mean least losses by method, and those next to FA's and to NP's."""
    found = {name: Estimate.of(losses(record)) for name, record in records.items()}
    printed = {name: loss for name, loss in found.items() if name in TABLE}
    values: dict[str, Any] = dict(found)
    if others := {name: loss for name, loss in printed.items() if METHODS[name].rule != "fa"}:
        nearest = max(others, key=lambda name: others[name].mean)
        values["worst but fa"] = nearest, others[nearest]
    if len(others := {name: loss for name, loss in printed.items() if name != "np"}) > 2:
        best = min(others, key=lambda name: others[name].mean)
        values["best but np"] = best, others[best]
    return values


def _below(one: str, other: str, text: str, kind: Kind = "paper") -> Statement:
    return Statement(text, (one, other), Estimate.below, Estimate.beside, kind)


def _within(a: Estimate, b: Estimate) -> bool | None:
    """True if two means are within two standard errors; None where these are not known."""
    two = a.two_errors(b)
    return None if math.isinf(two) else abs(a.mean - b.mean) <= two


LOSSES = (
    Statement(
        "FA performs poorly (here: worse than all others in the table)",
        ("fa", "worst but fa"),
        lambda fa, next_one: next_one[1].below(fa),
        lambda fa, next_one: f"next to FA is {next_one[0]}: {fa.beside(next_one[1])}",
    ),
    _below("np", "bp", "NP is better than BP"),
    _below("sg", "bp", "SG is better than BP (not said in words; so it is in the table)", "derived"),
    _below("dae", "bp", "DAE is better than BP"),
    _below("bp, noise", "bp", "noise helps BP"),
    _below("adam, noise", "adam", "noise helps ADAM"),
    Statement(
        "noise does not help FA (here: by no more than two standard errors)",
        ("fa, noise", "fa"),
        lambda with_it, without: _within(with_it, without) if with_it.mean < without.mean else True,
        lambda with_it, without: f"with and without {with_it.beside(without)}",
    ),
    Statement(
        "NP is the best of all (here: of those in the table)",
        ("np", "best but np"),
        lambda np, best: np.below(best[1]),
        lambda np, best: f"the best but NP is {best[0]}: {np.beside(best[1])}",
    ),
    Statement(
        "Matched is similar to BP (here: within two standard errors)",
        ("matched", "bp"),
        _within,
        Estimate.beside,
    ),
)
"""Statements about the least test losses; undecided within two standard errors of a difference."""


def _curves(records: Mapping[str, Record]) -> Panel:
    return Panel(
        title="a",
        x="iterations [10³]",
        y="loss of 32 images (dashed: training)",
        lines=[
            Line.of(name, curve, dashed=split == "train")
            for name, record in records.items()
            for split in ("test", "train")
            if (curve := record.curves.get(f"{split} loss, noise on", record.curves.get(f"{split} loss"))) is not None
        ],
        log_y=True,
    )


def separation(codes: np.ndarray, labels: np.ndarray) -> float:
    """The percentage of codes [N, units] that have the class of most of their ten nearest neighbours.

    >>> separation(np.array([[0.0], [1.0]]), np.array([3, 3]))
    100.0
    """
    distances = np.square(codes[:, None] - codes[None]).sum(2)
    np.fill_diagonal(distances, np.inf)
    count = min(NEIGHBOURS, len(codes) - 1)
    votes = labels[np.argsort(distances, axis=1)[:, :count]]
    winners = [np.bincount(row, minlength=1).argmax() for row in votes]
    return float(100 * np.mean(np.asarray(winners) == labels))


SEPARATED = (
    Statement(
        "NP's code separates digits better than BP's",
        ("np", "bp", "all"),
        lambda np, bp, found: bp.below(np),
        lambda np, bp, found: _percents(found),
    ),
    Statement(
        "FA's code does not separate digits (here: half as well as NP's)",
        ("np", "fa", "all"),
        lambda np, fa, found: fa.below(Estimate(np.mean / 2, np.error / 2)),
        lambda np, fa, found: _percents(found),
    ),
)
"""Statements about the codes' separation."""


def _percents(found: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{name} {one.mean:.1f} ± {one.error:.1f} %" for name, one in found.items())


def _codes(name: str, record: Record) -> Panel:
    codes, labels = np.asarray(record.arrays["codes"], dtype=float), np.asarray(record.arrays["labels"])
    lines = [
        Line(label=str(k), x=codes[labels == k, 0].tolist(), y=codes[labels == k, 1].tolist())
        for k in range(int(labels.max()) + 1)
    ]
    return Panel(title=f"b, {name}", x="unit 1", y="unit 2", lines=lines, kind="points")


SCRAMBLED = (
    Statement(
        "FA's reconstructions are scrambled (here: fewer of them than of any other method's lie nearest to their own image)",
        ("fa", "others", "all"),
        lambda fa, others, found: fa < min(others),
        lambda fa, others, found: f"of {SHOWN**2}: " + ", ".join(f"{name} {count}" for name, count in found.items()),
    ),
)
"""The statement about how much FA's reconstructions tell of their images."""


def _recognised(records: Mapping[str, Record]) -> dict[str, Any]:
    """Values that the statement about reconstructions speaks of: how many lie nearest to their own image, by method."""
    found = {
        name: recognised(record.arrays["images"], record.arrays["reconstructions"]) for name, record in records.items()
    }
    others = [count for name, count in found.items() if METHODS[name].rule != "fa"]
    return {**found, "all": found, **({"others": others} if others else {})}


def recognised(images: Sequence[Sequence[float]], reconstructions: Sequence[Sequence[float]]) -> int:
    """The number of reconstructions that lie nearer to their own image than to any other, of two mosaics."""
    own, made = (_tiles(mosaic) for mosaic in (images, reconstructions))
    nearest = np.square(made[:, None] - own[None]).sum(2).argmin(1)
    return int((nearest == np.arange(len(own))).sum())


def _tiles(mosaic: Sequence[Sequence[float]]) -> np.ndarray:
    pixels = np.asarray(mosaic, dtype=float)
    height, width = (n // SHOWN for n in pixels.shape)
    return pixels.reshape(SHOWN, height, SHOWN, width).transpose(0, 2, 1, 3).reshape(SHOWN**2, -1)


def _reconstructions(records: Mapping[str, Record]) -> list[Panel]:
    first = next(iter(records.values()))
    images = {"images": first.arrays["images"]}
    images |= {name: record.arrays["reconstructions"] for name, record in records.items()}
    return [Panel(title=f"c, {name}", kind="image", image=image) for name, image in images.items()]
