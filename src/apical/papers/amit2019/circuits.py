"""Two circuits of threshold units (Appendix 1): one for a class's error, one that shuts an error off at saturation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from apical.data import ImageData
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Line, Outcome, Panel
from apical.papers.record import Record

BOUND = 3.0
"""M, which |h| stays below."""
THRESHOLD = 1.0
"""S."""
MU = 1 / 9  # [R]
EPSILON = 0.05  # [R]
K = 2.0
"""The shut-off circuit's bound of |delta|."""
SIGNS = (1, -1)
"""s: of the class shown, and of every other class."""
SCORES = (-2.0, 0.0, 2.0)
"""The scores h in the panels."""


def error_unit(H: np.ndarray) -> np.ndarray:
    """The output o of a class's error unit, from its input H.

    >>> error_unit(np.array([8.0, 4.0, 0.0])).tolist()
    [1.05, 1.0, 0.0]
    """
    far = 2 * BOUND + THRESHOLD
    levels = [far < H, BOUND <= H, -BOUND <= H, -far <= H]
    return np.select(levels, [1 + EPSILON, 1.0, 0.0, -MU], -MU - EPSILON)


def stop_unit(o: np.ndarray) -> np.ndarray:
    """The output t of the stop unit, which answers an o beyond 1 or -mu.

    >>> stop_unit(np.array([1.05, 1.0, 0.0])).tolist()
    [1.0, 0.0, 0.0]
    """
    return np.where(o > 1, 1.0, np.where(o < -MU, -1.0, 0.0))


def output_error(h: np.ndarray, s: int, updates: int) -> np.ndarray:
    """The course of o [updates, *h] in the output-error circuit, H = h + 2 M s - 2 M t; o and t in turn, from t = 0.

    Args:
        h: the class's score, |h| < M. s: 1 for the class that is shown, else -1.
    """
    t, seen = np.zeros_like(h), []
    for _ in range(updates):
        seen.append(error_unit(h + 2 * BOUND * s - 2 * BOUND * t))
        t = stop_unit(seen[-1])
    return np.stack(seen)


def predicted(h: np.ndarray, s: int, updates: int) -> np.ndarray:
    """The course of o that the text describes: it stays at its class's error, or alternates with 0 past the margin."""
    steady, over = (1.0, 1 + EPSILON) if s > 0 else (-MU, -MU - EPSILON)
    cycle = np.where(np.arange(updates)[:, None] % 2 == 0, over, 0.0)
    return np.where(s * h > THRESHOLD, cycle, steady)


def hinge_error(h: np.ndarray, s: int) -> np.ndarray:
    """The error -dLoss/dh of the hinge loss (eqs 4-6)."""
    return np.where(s * h <= THRESHOLD, 1.0 if s > 0 else -MU, 0.0)


def shut_off(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The shut-off circuit's error: g(delta - 2 K u + 2 K v) with u = [x >= 1], v = -[x <= -1]; g(z) = z if z >= -K, else 0."""
    u, v = (x >= 1).astype(float), -(x <= -1).astype(float)
    z = delta - 2 * K * u + 2 * K * v
    return np.where(z >= -K, z, 0.0)


def sequenced(x: np.ndarray, delta: np.ndarray, *, gates_first: bool) -> np.ndarray:
    """The activity of units after the error has come down to them, where it takes the place of their forward activity x.

    Args:
        x: activities. delta: errors that arrive, |delta| < K. gates_first: whether the gates u and v are set, by x, before the
            error arrives; else only afterwards, by what then stands in x's place, from gates that were open.
    """
    if gates_first:
        return shut_off(x, delta)
    arrived = shut_off(np.zeros_like(x), delta)
    return shut_off(arrived, delta)


@dataclass(frozen=True, kw_only=True)
class Circuits(Experiment):
    """Both circuits over a grid of scores, activities and errors.

    Args:
        updates: of every unit. grid: points along each axis.
    """

    updates: int = 400
    grid: int = 400

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the circuits."""
        return "output error", "shut-off"

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of updates of every unit."""
        return {"updates": self.updates}

    def run(self, task: Task) -> Record:
        """The record of the circuit's updates. Nothing is random here; every seed gives the same."""
        updates = task.lengths["updates"]
        numbers: dict[str, float] = {}
        arrays: dict[str, object] = {}
        if task.condition == "output error":
            # Strictly inside: the intervals share their ends, where the text needs both values.
            h = np.linspace(-BOUND, BOUND, self.grid + 2)[1:-1]
            for s in SIGNS:
                o = output_error(h, s, updates)
                numbers[f"as described, s = {s:+d}"] = float((o == predicted(h, s, updates)).all(0).mean())
                numbers[f"hinge, s = {s:+d}"] = float(
                    (np.where(np.abs(o - o[:1]).max(0) > 0, 0.0, o[0]) == hinge_error(h, s)).mean()
                )
                for score in SCORES:
                    arrays[f"s = {s:+d}, h = {score:g}"] = output_error(np.array([score]), s, min(updates, 8))[:, 0]
        else:
            delta = np.linspace(-K, K, self.grid + 2)[1:-1]
            x = np.linspace(-1, 1, self.grid + 1)[:, None]
            numbers["as described"] = float((shut_off(x, delta) == np.where(np.abs(x) == 1, 0.0, delta)).mean())
            passed = np.where(np.abs(x) == 1, 0.0, delta)
            for name, first in (("gates first", True), ("error first", False)):
                numbers[name] = float((sequenced(x, delta, gates_first=first) == passed).mean())
            numbers["at the bound"] = float(shut_off(np.ones(1), np.full(1, K))[0])
            arrays["delta"] = delta[:: self.grid // 40]
            arrays |= {f"x = {one:g}": shut_off(np.array(one), delta[:: self.grid // 40]) for one in (-1.0, 0.5, 1.0)}
        task.tell(updates, updates)
        return Record(
            numbers={name: [value] * len(task.seeds) for name, value in numbers.items()}, arrays=_listed(arrays)
        )

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The text's tables, and what the circuits do."""
        panels: list[Panel] = []
        notes: list[str] = []
        values: dict[str, Any] = {"scores": self.grid, "pairs": self.grid * (self.grid + 1)}
        if record := records.get("output error"):
            values |= {name: found[0] for name, found in record.numbers.items()}
            panels += [_output_error(record, s) for s in SIGNS]
        if record := records.get("shut-off"):
            values["passed"] = record.numbers["as described"][0]
            values |= {name: record.numbers[name][0] for name in ("gates first", "error first")}
            notes.append(
                f"At delta = K exactly a saturated unit passes {record.numbers['at the bound'][0]:g} instead of 0: the circuit "
                "needs |delta| < K."
            )
            lines = [Line(label=n, x=record.arrays["delta"], y=v) for n, v in record.arrays.items() if n != "delta"]
            panels.append(Panel(title="shut-off", x="delta", y="delta passed on", lines=lines))
        return Outcome(claims=judge(STATEMENTS, values), panels=panels, columns=3, notes=notes)


def _alternates(s: int, who: str, error: str, at: str) -> Statement:
    return Statement(
        f"{who}: o stays at {error}, and alternates with 0 where {at}",
        (f"as described, s = {s:+d}", f"hinge, s = {s:+d}", "scores"),
        lambda part, hinge, scores: part == 1,
        lambda part, hinge, scores: (
            f"{part:.1%} of {scores} scores; where o stays, it is the hinge loss's error ({hinge:.1%})"
        ),
    )


STATEMENTS = (
    _alternates(1, "The class shown", "1", "h > S"),
    _alternates(-1, "Another class", "−μ", "h < −S"),
    Statement(
        "An error passes unless its unit is saturated, |x| = 1",
        ("passed", "pairs"),
        lambda part, pairs: part == 1,
        lambda part, pairs: f"{part:.1%} of {pairs} pairs",
    ),
    Statement(
        "The shut-off circuit needs its sequence: gates are set by the forward activity, before the error takes its place",
        ("gates first", "error first"),
        lambda before, after: before == 1 > after,
        lambda before, after: f"as described for {before:.1%} of the pairs; with the error first for {after:.1%}",
        "derived",
    ),
)


def _output_error(record: Record, s: int) -> Panel:
    outputs = {f"h = {score:g}": record.arrays[f"s = {s:+d}, h = {score:g}"] for score in SCORES}
    lines = [Line(label=score, x=list(range(1, len(o) + 1)), y=o) for score, o in outputs.items()]
    return Panel(title=f"output error, s = {s:+d}", x="update", y="o", lines=lines)


def _listed(arrays: Mapping[str, object]) -> dict[str, list[float]]:
    return {name: np.asarray(values, dtype=float).tolist() for name, values in arrays.items()}


CIRCUITS = Circuits(
    name="amit2019/circuits",
    title="Threshold circuits for the output's error and for saturation",
    source="Appendix 1",
    length="400 updates",
    seeds=1,
    minutes=0.1,
    readings=(
        "M = 3, S = 1, mu = 1/9, epsilon = 0.05, K = 2: the paper asks only for mu <= 1 and a small epsilon.",
        "Figure 15's sequence is read from Remark 1: a unit's gates hold what its forward activity set, and the error that comes "
        "down then takes that activity's place.",
    ),
)
