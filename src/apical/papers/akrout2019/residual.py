"""What the paper says of residual networks: test errors in an order (section 6), and angles of every layer (figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apical.papers.claims import Statement
from apical.papers.classifiers.training import DELTA, MATRIX
from apical.papers.outcome import Kind, Line, Panel, Row
from apical.papers.record import Curve, Record

FIRST_DROP = 32
TITLES = {"bp": "BP", "wm": "WM", "kp": "KP", "usf": "SS", "fa": "FA"}
LARGE, SMALL = 20.0, 2.0
"""Points of test error that stand for "much better" between SS and FA, and for "better" (readings)."""
NEAR = 5.0
"""Degrees that count as near zero (a reading)."""


@dataclass(frozen=True)
class Angles:
    """One of the two angles of every layer that has it, over training.

    Args:
        names: of the layers [layers], from the input on. x: epochs of a whole run [points]. values: degrees [layers, points],
            mean over seeds.

    >>> Angles(("0", "1"), np.array([0.0, 90.0]), np.array([[90.0, 4.0], [90.0, 2.0]])).at(90).tolist()
    [4.0, 2.0]
    """

    names: tuple[str, ...]
    x: NDArray[np.float64]
    values: NDArray[np.float64]

    @staticmethod
    def of(record: Record, what: str, epochs: int) -> Angles:
        """Those that a record holds under names that begin with `what`, of a run that stands for so many epochs."""
        own = {name.removeprefix(what): curve for name, curve in record.curves.items() if name.startswith(what)}
        there = {name: curve for name, curve in own.items() if np.isfinite(curve.values).any()}
        curve = next(iter(record.curves.values()))
        x = np.asarray(curve.x, dtype=float)
        values = np.array([one.mean for one in there.values()]).reshape(len(there), len(x))
        return Angles(tuple(there), x / max(x[-1], 1e-9) * epochs, values)

    def at(self, epoch: float) -> NDArray[np.float64]:
        """The angles of every layer at the measurement nearest to an epoch."""
        return self.values[:, int(np.abs(self.x - epoch).argmin())]

    @property
    def last(self) -> NDArray[np.float64]:
        """The angles of every layer at the end."""
        return self.values[:, -1]


def angles_of(records: Mapping[str, Record], epochs: Mapping[str, int]) -> dict[str, Angles]:
    """Name of an angle and condition -> angles. epochs: condition -> how many its whole run has."""
    return {
        f"{what}{name}": Angles.of(record, what, epochs[name])
        for name, record in records.items()
        for what in (MATRIX, DELTA)
    }


def error_statements(network: str, within: float, kind: Kind) -> list[Statement]:
    """Section 6: WM and KP learn as BP does, SS less well, FA hardly. within: points of error that WM and KP may be above BP."""

    def compared(better: str, worse: str, text: str, by: float) -> Statement:
        return Statement(
            f"{network}: {text}",
            (f"test error, {network}, {better}", f"test error, {network}, {worse}"),
            lambda low, high: high - low > by,
            lambda low, high: f"{low:.1f}% against {high:.1f}%",
            kind,
        )

    def near(rule: str) -> Statement:
        return Statement(
            f"{network}: {TITLES[rule]} comes to BP's test error [within {within:g} points]",
            (f"test error, {network}, {rule}", f"test error, {network}, bp"),
            lambda own, bp: own - bp < within,
            lambda own, bp: f"{own:.1f}% against {bp:.1f}%",
            kind,
        )

    return [
        near("wm"),
        near("kp"),
        *(
            compared(rule, "usf", f"{TITLES[rule]} is better than SS [by more than {SMALL:g} points]", SMALL)
            for rule in ("wm", "kp")
        ),
        compared("usf", "fa", f"SS is much better than FA [by more than {LARGE:g} points]", LARGE),
    ]


def angle_statements(network: str, kind: Kind) -> list[Statement]:
    """Figure 4, panel by panel."""

    def about(
        rule: str, what: str, text: str, holds: Callable[[Angles], bool], told: Callable[[Angles], str]
    ) -> Statement:
        return Statement(f"{network}, {TITLES[rule]}: {text}", (f"{what}{network}, {rule}",), holds, told, kind)

    def largest(angles: Angles) -> str:
        worst = int(angles.last.argmax())
        return f"{angles.last.mean():.1f}° on the mean at the end, at most {angles.last[worst]:.1f}° ({angles.names[worst]})"

    def but_the_last(angles: Angles) -> str:
        return f"at most {angles.last[:-1].max():.1f}° at the end, the last layer's {angles.last[-1]:.1f}°"

    def along(epochs: Sequence[int]) -> Callable[[Angles], str]:
        return lambda angles: (
            "mean over layers " + ", ".join(f"{angles.at(one).mean():.1f}° after epoch {one}" for one in epochs)
        )

    def halves(angles: Angles) -> tuple[float, float]:
        middle = len(angles.names) // 2
        return float(angles.last[:middle].mean()), float(angles.last[middle:].mean())

    def kept_near_zero(angles: Angles) -> bool:
        return bool(angles.values[:, angles.x >= 20].max() < NEAR)

    def worse(what: str, name: str) -> Statement:
        return Statement(
            f"{network}: SS's {name} angles are larger than WM's and KP's [mean over layers]",
            tuple(f"{what}{network}, {rule}" for rule in ("usf", "wm", "kp")),
            lambda ss, wm, kp: ss.last.mean() > max(wm.last.mean(), kp.last.mean()),
            lambda ss, wm, kp: f"{ss.last.mean():.1f}° against {wm.last.mean():.1f}° and {kp.last.mean():.1f}°",
            kind,
        )

    def far(what: str, name: str) -> Statement:
        return about(
            "fa",
            what,
            f"{name} angles stay above 80° in most layers",
            lambda one: float((one.last > 80).mean()) > 0.5,
            lambda one: f"{int((one.last > 80).sum())} of {len(one.names)} layers",
        )

    return [
        about("wm", MATRIX, "matrix angles end under 12° in all layers", lambda one: one.last.max() < 12, largest),
        about(
            "wm",
            MATRIX,
            "matrix angles end under 6° in all but the last layer",
            lambda one: one.last[:-1].max() < 6,
            but_the_last,
        ),
        about(
            "wm",
            MATRIX,
            "matrix angles grow between epochs 2 and 10",
            lambda one: one.at(10).mean() > one.at(2).mean(),
            along((2, 10)),
        ),
        about(
            "wm",
            MATRIX,
            "matrix angles hold steady from epoch 10 to 32 [within a fifth]",
            lambda one: abs(one.at(FIRST_DROP - 1).mean() / one.at(10).mean() - 1) < 0.2,
            along((10, FIRST_DROP - 1)),
        ),
        about(
            "wm",
            MATRIX,
            "matrix angles fall after the first drop of the rate",
            lambda one: one.at(FIRST_DROP + 8).mean() < one.at(FIRST_DROP - 1).mean(),
            along((FIRST_DROP - 1, FIRST_DROP + 8)),
        ),
        about("wm", DELTA, "delta angles end under 25° in all layers", lambda one: one.last.max() < 25, largest),
        about(
            "wm",
            DELTA,
            "delta angles are larger upstream [mean of the first half of the layers against the second]",
            lambda one: halves(one)[0] > halves(one)[1],
            lambda one: f"{halves(one)[0]:.1f}° against {halves(one)[1]:.1f}°",
        ),
        *(
            about(
                "kp",
                what,
                f"{name} angles are near zero from epoch 20 on [under {NEAR:g}° in all layers]",
                kept_near_zero,
                lambda one: f"at most {one.values[:, one.x >= 20].max():.1f}°",
            )
            for what, name in ((MATRIX, "matrix"), (DELTA, "delta"))
        ),
        *(worse(what, name) for what, name in ((MATRIX, "matrix"), (DELTA, "delta"))),
        far(MATRIX, "matrix"),
        far(DELTA, "delta"),
    ]


def angle_rows(records: Mapping[str, Record]) -> list[Row]:
    """The mean and the largest angle over layers at the end, for each condition and seed."""
    rows = []
    for name, record in records.items():
        for what in (MATRIX, DELTA):
            ends = np.array([curve.last for key, curve in record.curves.items() if key.startswith(what)])
            ends = ends[np.isfinite(ends).all(1)] if len(ends) else ends
            if len(ends) and ends.max() > 0:
                for which, value in (("mean", ends.mean(0)), ("largest", ends.max(0))):
                    rows.append(Row(f"{name}: {which} {what[:-2]} over layers", value.tolist(), unit="°"))
    return rows


def angle_panels(records: Mapping[str, Record]) -> list[Panel]:
    """Both angles of every layer over epochs, two panels for each condition that has such angles."""
    panels = []
    for name, record in records.items():
        for what in (MATRIX, DELTA):
            own: dict[str, Any] = {
                key.removeprefix(what): curve for key, curve in record.curves.items() if key.startswith(what)
            }
            lines = [Line.of(layer, curve) for layer, curve in own.items() if _varies(curve)]
            if lines:
                title = f"{name}: {what[:-2]}s"
                panels.append(Panel(title=title, x="epochs", y=f"{what[:-2]} (°)", lines=lines, low=0, marks=(90,)))
    return panels


def _varies(curve: Curve) -> bool:
    values = curve.values
    return bool(np.isfinite(values).any() and np.nanmax(values) > 1e-3)
