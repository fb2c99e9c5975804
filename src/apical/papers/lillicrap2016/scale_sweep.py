"""Alignment of the linear network's weights: with what, and from how small a start (preprint's Figure 4; section 1.22)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from apical.measures.tensors import angles
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Task
from apical.papers.lillicrap2016.linear_function import (
    BESIDE_PBP,
    ERROR,
    INPUTS,
    LEARNS,
    PBP,
    PBP_SEARCH,
    RATES,
    READINGS,
    SEARCH,
    TO_BP,
    WIDER,
    LinearFunction,
    network,
    reached,
)
from apical.papers.lillicrap2016.online import ByPseudoInverse, Students, signal_angles
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record

TO_PBP, TO_INVERSE, TO_TRANSPOSE = (
    "angle of delta FA to delta PBP",
    "angle of W to the pseudo-inverse of B",
    "angle of W to the transpose of B",
)
SOON = 60
"""Degrees by which alignment is timed: every scale comes below, none starts there."""


def alignments(students: Students, e: Tensor) -> dict[str, list[float]]:
    """The angles of FA's signal e B to those through W and through its pseudo-inverse, and of W to the same two matrices of B.

    Args:
        students: the networks. e: their errors [seeds, N, outputs].
    """
    W, B = students.weight("1"), students.feedback("1")
    return {
        TO_BP: signal_angles(e, B, W),
        TO_PBP: signal_angles(e, B, torch.linalg.pinv(W.double()).mT.to(e.dtype)),
        TO_INVERSE: angles(W.flatten(1), torch.linalg.pinv(B.double().mT).flatten(1)).tolist(),
        TO_TRANSPOSE: angles(W.flatten(1), B.flatten(1)).tolist(),
    }


CLOSER = (
    Statement(
        "FA's signal comes closer to W^+ e than to W^T e",
        (TO_PBP, TO_BP),
        lambda pbp, bp: pbp[-1] < bp[-1],
        lambda pbp, bp: (
            f"{pbp[-1]:.1f} against {bp[-1]:.1f} degrees at the end; "
            f"closer at {100 * (bp[1:] > pbp[1:]).mean():.0f} % of the points measured after the start"
        ),
    ),
    Statement(
        "W aligns with the pseudo-inverse of B",
        (TO_INVERSE,),
        lambda inverse: inverse[-1] < inverse[0] - 30,
        lambda inverse: f"from {inverse[0]:.1f} to {inverse[-1]:.1f} degrees",
    ),
    Statement(
        "W comes closer to the pseudo-inverse of B than to its transpose",
        (TO_INVERSE, TO_TRANSPOSE),
        lambda inverse, transpose: inverse[-1] < transpose[-1],
        lambda inverse, transpose: f"{inverse[-1]:.1f} against {transpose[-1]:.1f} degrees at the end",
        kind="ours",
    ),
)
"""Of the angles' means over seeds [points]."""


@dataclass(frozen=True, kw_only=True)
class PseudoInverse(LinearFunction):
    """FA's signal and weights beside the transpose and the pseudo-inverse of the weights; and learning by either of these."""

    @override
    def run(self, task: Task) -> Record:
        weights = self.weights if task.condition == "fa" else WIDER
        return self.trained(task, task.condition, self.rates[task.condition], weights)

    @override
    def students(self, condition: str, seeds: Sequence[int], rate: float, weights: float) -> Students:
        kind = ByPseudoInverse if condition == PBP else Students
        rule = self.rule("fa" if condition == PBP else condition)
        return kind(lambda seed: network(seed, weights), rule, seeds, inputs=INPUTS, rate=rate)

    @override
    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        aligns = students.learner.rule.name == "fa" and not isinstance(students, ByPseudoInverse)
        return alignments(students, e) if aligns else {}

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        errors = {name: record.curves[ERROR] for name, record in records.items()}
        aligned = self._aligned(records["fa"]) if "fa" in records else Outcome()
        learned = Panel(
            title="learning",
            x="examples",
            y=ERROR,
            lines=[Line.of(name, curve) for name, curve in errors.items()],
            log_y=True,
        )
        return Outcome(
            rows=[*aligned.rows, *(Row(f"final {ERROR}, {name}", curve.last) for name, curve in errors.items())],
            claims=[*aligned.claims, *judge(LEARNS, errors)],
            panels=[*aligned.panels, learned],
        )

    def _aligned(self, record: Record) -> Outcome:
        curves = record.curves
        rows = [Row(f"{name} at the end", curve.last, unit="°") for name, curve in curves.items() if name != ERROR]
        signal = {TO_BP: "to W^T e", TO_PBP: "to W^+ e"}
        weights = {TO_TRANSPOSE: "to the transpose of B", TO_INVERSE: "to the pseudo-inverse of B"}
        panels = [
            Panel(
                title=title,
                x="examples",
                y="angle, °",
                lines=[Line.of(label, curves[name]) for name, label in lines.items()],
                low=0,
                high=100,
                marks=(90,),
            )
            for title, lines in (("FA's signal", signal), ("weights W", weights))
        ]
        claims = judge(CLOSER, {name: curve.mean for name, curve in curves.items()})
        return Outcome(rows=rows, claims=claims, panels=panels)


def at_end(curve: Curve) -> np.ndarray:
    """Each seed's last value [seeds]."""
    return curve.values[:, -1]


def soon(curve: Curve) -> np.ndarray:
    """The examples until each seed's angle is small [seeds]; all there are, and one more, where it never is."""
    return np.nan_to_num(reached(curve, SOON), nan=curve.x[-1] + 1)


@dataclass(frozen=True)
class Timing:
    """A number that tells how far or how fast an angle fell."""

    name: str
    of: Callable[[Curve], np.ndarray]


AT_END, FAST = Timing("angle at the end", at_end), Timing(f"examples to {SOON}°", soon)
ByScale = Mapping[float, np.ndarray]
"""w -> value per seed."""


def told(by_scale: ByScale, pair: Callable[[float], str]) -> str:
    """One entry per scale, in words."""
    return ", ".join(f"{pair(w)} for w = {w:g}" for w in by_scale)


def rises(by_scale: ByScale) -> bool:
    """True if a value rises with the scale, from each to the next, up to two standard errors of the difference."""
    values = list(by_scale.values())
    means = [float(one.mean()) for one in values]
    errors = [float(one.std(ddof=1) / len(one) ** 0.5) if len(one) > 1 else 0.0 for one in values]
    steps = all(b > a - 2 * np.hypot(p, q) for a, b, p, q in zip(means, means[1:], errors, errors[1:], strict=False))
    return steps and means[-1] > means[0]


def ordered(word: str, timing: Timing) -> Statement:
    """The statement that smaller weights align better, of the angle to W^T e."""
    return Statement(
        f"The smaller w, the {word} the alignment",
        (f"{timing.name}, {TO_BP}",),
        rises,
        lambda bp: f"{timing.name}: " + told(bp, lambda w: f"{bp[w].mean():.1f}"),
        kind="ours",  # A third party tells of the preprint's figure.
    )


def nearer(word: str, when: str, timing: Timing) -> Statement:
    """The statement that, from every scale, the angle to W^+ e is before that to W^T e."""
    return Statement(
        f"The angle to W^+ e falls {word} than that to W^T e",
        (f"{timing.name}, {TO_PBP}", f"{timing.name}, {TO_BP}"),
        lambda pbp, bp: all(pbp[w].mean() < bp[w].mean() for w in bp),
        lambda pbp, bp: f"{when}: " + told(bp, lambda w: f"{pbp[w].mean():.1f} against {bp[w].mean():.1f}"),
        kind="ours",
    )


ORDERED = (ordered("closer", AT_END), ordered("faster", FAST))
NEARER = (nearer("lower", "at the end", AT_END), nearer("faster", FAST.name, FAST))


@dataclass(frozen=True, kw_only=True)
class ScaleSweep(LinearFunction):
    """FA from initial weights of several sizes."""

    scales: Sequence[float] = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.125, 0.15, 0.2, 0.25)  # [T]
    rate: float = 1e-3  # [T]

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(f"w = {scale:g}" for scale in self.scales)

    @override
    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        return alignments(students, e)

    @override
    def run(self, task: Task) -> Record:
        scale = self.scales[self.conditions.index(task.condition)]
        return self.trained(task, "fa", self.rate, scale)

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        named = zip(self.scales, self.conditions, strict=True)
        curves = {scale: records[name].curves for scale, name in named if name in records}
        rows = [
            Row(f"{name} at the end, w = {scale:g}", one[name].last, unit="°")
            for scale, one in curves.items()
            for name in (TO_BP, TO_PBP)
        ]
        panels = [
            Panel(
                title=title,
                x="examples",
                y=y,
                lines=[Line.of(f"w = {scale:g}", one[name]) for scale, one in curves.items()],
                log_y=name == ERROR,
                low=None if name == ERROR else 0,
                high=None if name == ERROR else 100,
                marks=() if name == ERROR else (90,),
            )
            for title, name, y in (
                ("error", ERROR, "normalized squared error"),
                ("delta FA and W^T e", TO_BP, "angle, °"),
                ("delta FA and W^+ e", TO_PBP, "angle, °"),
            )
        ]
        return Outcome(rows=rows, claims=self.judged(curves), panels=panels)

    def judged(self, curves: Mapping[float, Mapping[str, Curve]]) -> list[Claim]:
        """The claims that can be made of the curves from each scale; an order needs two of these."""
        values = {
            f"{timing.name}, {angle}": {w: timing.of(one[angle]) for w, one in curves.items()}
            for timing in (AT_END, FAST)
            for angle in (TO_BP, TO_PBP)
        }
        statements = (*ORDERED, *NEARER) if len(curves) > 1 else NEARER
        return judge(statements, values) if curves else []


SCALE_SWEEP = ScaleSweep(
    name="lillicrap2016/scale-sweep",
    title="Alignment from initial weights of several sizes",
    source="Preprint (arXiv 1411.0247), Figure 4",
    length="2000 examples for each of nine scales",
    seeds=20,
    minutes=1,
    readings=(
        *READINGS,
        "W_0 and W from U[-w, w], rate 1e-3, 20 trials: third-party reproductions of the preprint [T].",
    ),
)
PSEUDO_INVERSE = PseudoInverse(
    name="lillicrap2016/pseudoinverse",
    title="Feedback alignment lies nearer to the pseudo-inverse than to the transpose",
    source="Main text on pseudo-inverse feedback (supplementary notes)",
    length="2000 examples",
    seeds=20,
    minutes=0.2,
    rates={"fa": RATES["fa"], BESIDE_PBP: RATES["bp"], PBP: RATES["bp"]},
    readings=(*READINGS, SEARCH, PBP_SEARCH),
)
