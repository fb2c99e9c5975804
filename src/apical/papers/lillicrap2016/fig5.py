"""Figure 5: how the feedback's information comes into the forward weights, on a quadratic function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import override

from apical.data import ImageData
from apical.papers.claims import Statement, judge
from apical.papers.course import course, spread
from apical.papers.experiment import Task
from apical.papers.lillicrap2016.online import Students, learned, normalized_squared_error
from apical.papers.lillicrap2016.quadratic_function import ANGLE, ERROR, HIDDEN, Quadratic, unit_angles
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record

# [R] which units; the same of every network.
SAMPLE = tuple(torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(5))[:10].tolist())


def unit(number: int) -> str:
    """The name of a hidden unit, and of the curve of its angle."""
    return f"unit {number}"


ALIGNING = (
    Statement(
        "The angles start at about 90 degrees",
        (ANGLE,),
        lambda angle: abs(angle.mean[0] - 90) < 5,
        lambda angle: f"{angle.mean[0]:.1f}, mean over the {HIDDEN} units and over seeds",
    ),
    Statement(
        "They fall as W aligns with B",
        (ANGLE, "fell"),
        lambda angle, fell: angle.mean[-1] < angle.mean[0] - 20,
        lambda angle, fell: (
            f"{angle.mean[-1]:.1f} at the end; of {len(SAMPLE)} units sampled in each network {100 * fell:.0f} % fell"
        ),
    ),
    Statement(
        "Meanwhile the network learns",
        (ERROR,),
        lambda error: error.mean[-1] < error.mean[0] / 2,
        lambda error: f"normalized squared error from {error.mean[0]:.2g} to {error.mean[-1]:.2g}",
        kind="ours",
    ),
)
"""About the angles of W to B, the fraction of the sampled ones that fell, and the error."""


@dataclass(frozen=True, kw_only=True)
class UnitAngles(Quadratic):
    """Figure 5a: outgoing weights of hidden units turn towards their feedback."""

    examples: int = 30_000  # [R]

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return ("fa",)

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"examples": self.examples}

    @override
    def run(self, task: Task) -> Record:
        pairs, students = self.students(task)
        x, y = pairs.held_out(500)

        def measure() -> dict[str, list[float]]:
            found = unit_angles(students.weight("2"), students.feedback("2"))
            each = {unit(number): found[:, number].tolist() for number in SAMPLE}
            return {ERROR: normalized_squared_error(students.outputs(x), y), ANGLE: found.mean(1).tolist(), **each}

        return Record(curves=learned(task, pairs, students, measure, points=60))

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        if "fa" not in records:
            return Outcome()
        curves = records["fa"].curves
        units = {number: curves[unit(number)] for number in SAMPLE}
        fell = float(np.mean([curve.values[:, -1] < curve.values[:, 0] for curve in units.values()]))
        rows = [Row(f"{ANGLE}, at the end", curves[ANGLE].last, unit="°"), Row(f"final {ERROR}", curves[ERROR].last)]
        # One network's units, as in the paper; bands over networks would hide them.
        lines = [
            Line(label=unit(number), x=units[number].x, y=units[number].values[0].tolist()) for number in SAMPLE[:5]
        ]
        angles = {"x": "examples", "y": "angle of W to B, °", "low": 0, "marks": (90,)}
        panels = [
            Panel(title="angles of five units", lines=lines, **angles),
            Panel(title="all units", lines=[Line.of("mean over units", curves[ANGLE])], **angles),
            Panel(title="learning curve", x="examples", y=ERROR, lines=[Line.of("fa", curves[ERROR])], log_y=True),
        ]
        return Outcome(rows=rows, claims=judge(ALIGNING, {**curves, "fell": fell}), panels=panels)


WHOLE, WITHOUT = "three phases", "without phase 1"
"""The figure, and a control in which W_0 and W stand still at first."""


@dataclass(frozen=True)
class Bounds:
    """The errors and angles of one condition where its phases begin and end.

    Args:
        error: normalized, at the start and at the end of each phase [seeds, phases + 1]. angle: mean over units, likewise.
    """

    error: np.ndarray
    angle: np.ndarray

    @staticmethod
    def of(record: Record) -> Bounds:
        """The measurements nearest to the bounds of a record's phases."""

        def ends(curve: Curve) -> np.ndarray:
            x = np.asarray(curve.x)
            return curve.values[:, [int(np.argmin(np.abs(x - bound))) for bound in record.arrays["bounds"]]]

        return Bounds(ends(record.curves[ERROR]), ends(record.curves[ANGLE]))

    def left(self, phase: int) -> np.ndarray:
        """The fraction of the error that a phase leaves, counted from 1 [seeds]."""
        return self.error[:, phase] / self.error[:, phase - 1]

    def turned(self, phase: int) -> float:
        """The mean angle at the end of a phase."""
        return float(self.angle[:, phase].mean())


PASSING = (
    Statement(
        "Phase 1: error driven through B hardly reduces the loss",
        (WHOLE,),
        lambda whole: whole.left(1).mean() > 0.9,
        lambda whole: f"{whole.left(1).mean():.2f} of the error is left",
    ),
    Statement(
        "Phase 2: B's information passes from W_0 into W, which turns towards B",
        (WHOLE,),
        lambda whole: whole.turned(2) < whole.turned(1) - 5,
        lambda whole: f"mean angle per unit from {whole.turned(1):.1f} to {whole.turned(2):.1f} degrees",
    ),
    Statement(
        "Phase 3: error driven through B has become effective for the hidden layer",
        (WHOLE,),
        lambda whole: whole.left(3).mean() < 0.9 and whole.left(3).mean() < whole.left(1).mean(),
        lambda whole: f"{whole.left(3).mean():.2f} of the error of phase 2 is left",
    ),
    Statement(
        "Without phase 1 the third phase is not as effective (our control)",
        (WITHOUT, WHOLE),
        lambda without, whole: without.left(3).mean() > whole.left(3).mean(),
        lambda without, whole: f"{without.left(3).mean():.2f} of the error is left, against {whole.left(3).mean():.2f}",
        kind="ours",
    ),
)
"""About the bounds of the phases under both conditions."""


@dataclass(frozen=True, kw_only=True)
class Phases(Quadratic):
    """Figure 5c: W_0 alone learns, then W alone, then W_0 alone.

    Args:
        phases: examples in each.
    """

    phases: tuple[int, int, int] = (4000, 4000, 4000)  # [R]

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return (WHOLE, WITHOUT)

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {f"phase {number}": length for number, length in enumerate(self.phases, 1)}

    @override
    def run(self, task: Task) -> Record:
        pairs, students = self.students(task)
        x, y = pairs.held_out(500)
        bounds = np.cumsum([0, *task.lengths.values()]).tolist()
        still = [("0", "2") if task.condition == WITHOUT else ("2",), ("0",), ("2",)]
        now = -1

        def learn(step: int) -> None:
            nonlocal now
            phase = sum(step >= bound for bound in bounds[1:-1])
            if phase != now:
                Students.freeze(students.copies.model, still[phase])
                now = phase
            if len(still[phase]) < 2:
                students.learn(*pairs(step))

        def measure() -> dict[str, list[float]]:
            found = unit_angles(students.weight("2"), students.feedback("2"))
            return {ERROR: normalized_squared_error(students.outputs(x), y), ANGLE: found.mean(1).tolist()}

        found = course(
            task, bounds[-1], learn=learn, measure=measure, at=[*spread(bounds[-1], 60), *bounds], parts=students.parts
        )
        return Record(curves=found, arrays={"bounds": bounds})

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        bounds = {name: Bounds.of(record) for name, record in records.items()}
        rows = [
            Row(f"fraction of the error left by phase {phase}, {name}", one.left(phase).tolist())
            for name, one in bounds.items()
            for phase in (1, 2, 3)
        ]
        panels = [
            Panel(title=title, x="examples", y=key, lines=self._lines(records, key), low=low, marks=marks)
            for title, key, low, marks in (("c", ERROR, 0, ()), ("angles", ANGLE, None, (90,)))
        ]
        return Outcome(rows=rows, claims=judge(PASSING, bounds), panels=panels)

    @staticmethod
    def _lines(records: Mapping[str, Record], key: str) -> list[Line]:
        return [Line.of(name, one.curves[key], dashed=name != WHOLE) for name, one in records.items()]


READINGS = (
    "The target is y*_k = x Q_k x^T, the quadratic form that needs one matrix for each output; its formula is lost.",
    "Ranges, rate and lengths were manually selected and are not printed; ours by training error and the shape of the curves.",
)
FIG5A = UnitAngles(
    name="lillicrap2016/fig5a",
    title="Outgoing weights of hidden units align with their feedback",
    source="Figure 5a; Methods, quadratic function",
    length="30000 examples",
    seeds=20,
    minutes=5,
    rate=3e-4,  # [R]
    hidden=1.0,  # [R]
    output=0.1,  # [R]
    feedback=1.0,  # [R]
    readings=(
        *READINGS,
        "Also tried, one network each, 20000 examples: W_0 from U[-0.1, 0.1] or U[-0.3, 0.3] and W from U[-0.01, 0.01] to "
        "U[-0.1, 0.1] at rates 3e-4 to 1e-3, B from U[-0.5, 0.5] or U[-1, 1]. The mean angle then rises above 90 degrees (to "
        "100 to 120) before it falls, sooner and further (to 51 to 64 degrees). With B from U[-0.02, 0.02] little is learned.",
    ),
)
FIG5C = Phases(
    name="lillicrap2016/fig5c",
    title="The feedback's information passes through W0 into W, and makes errors effective",
    source="Figure 5c",
    length="three phases of 4000 examples",
    seeds=20,
    minutes=4,
    rate=1e-3,  # [R]
    hidden=0.5,  # [R]
    output=0.01,  # [R]
    feedback=0.5,  # [R]
    readings=(
        *READINGS,
        "Also tried, one network each: W_0 from U[-0.1, 0.1], B from U[-0.2, 0.2], rates 1e-4 and 3e-4. Phases of 4000 examples "
        "are then too short to see much (at 1e-4 no phase reduces the error by more than 5 percent).",
    ),
)
