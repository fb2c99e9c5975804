"""How well the weights of the linear network align, with what, and from how small a start (preprint's Figure 4; section 1.22)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from apical.measures.tensors import angles
from apical.papers.experiment import Task
from apical.papers.lillicrap2016.fig2 import ERROR, RATES, READINGS, SEARCH, TO_BP, LinearFunction, reached
from apical.papers.lillicrap2016.online import Students, signal_angles
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
    """Angles of FA's signal e B to those through W and through its pseudo-inverse, and of W to the same two matrices of B.

    e: errors [seeds, N, outputs].
    """
    W, B = students.weight("1"), students.feedback("1")
    return {
        TO_BP: signal_angles(e, B, W),
        TO_PBP: signal_angles(e, B, torch.linalg.pinv(W.double()).mT.to(e.dtype)),
        TO_INVERSE: angles(W.flatten(1), torch.linalg.pinv(B.double().mT).flatten(1)).tolist(),
        TO_TRANSPOSE: angles(W.flatten(1), B.flatten(1)).tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class PseudoInverse(LinearFunction):
    """FA's signal and weights beside the transpose and the pseudo-inverse of the weights."""

    @override
    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        return alignments(students, e)

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        if "fa" not in records:
            return Outcome()
        curves = records["fa"].curves
        mean = {name: curve.values.mean(0) for name, curve in curves.items()}
        later = mean[TO_BP][1:] > mean[TO_PBP][1:]
        claims = [
            Claim(
                "FA's signal comes closer to W^+ e than to W^T e",
                bool(mean[TO_PBP][-1] < mean[TO_BP][-1]),
                f"{mean[TO_PBP][-1]:.1f} against {mean[TO_BP][-1]:.1f} degrees at the end; "
                f"closer at {100 * later.mean():.0f} % of the points measured after the start",
            ),
            Claim(
                "W aligns with the pseudo-inverse of B",
                bool(mean[TO_INVERSE][-1] < mean[TO_INVERSE][0] - 30),
                f"from {mean[TO_INVERSE][0]:.1f} to {mean[TO_INVERSE][-1]:.1f} degrees",
            ),
            Claim(
                "W comes closer to the pseudo-inverse of B than to its transpose",
                bool(mean[TO_INVERSE][-1] < mean[TO_TRANSPOSE][-1]),
                f"{mean[TO_INVERSE][-1]:.1f} against {mean[TO_TRANSPOSE][-1]:.1f} degrees at the end",
            ),
        ]
        rows = [Row(f"{name} at the end", curve.last, unit="°") for name, curve in curves.items() if name != ERROR]
        labels = {TO_BP: "to W^T e", TO_PBP: "to W^+ e"}
        other = {TO_TRANSPOSE: "to the transpose of B", TO_INVERSE: "to the pseudo-inverse of B"}
        panels = [
            Panel(
                title=title,
                x="examples",
                y=y,
                lines=[Line.of(label, curves[name]) for name, label in lines.items()],
                low=0,
                high=100,
                marks=(90,),
            )
            for title, y, lines in (
                ("FA's signal", "angle, °", labels),
                ("weights W", "angle, °", other),
            )
        ]
        return Outcome(rows=rows, claims=claims, panels=panels)


@dataclass(frozen=True, kw_only=True)
class ScaleSweep(LinearFunction):
    """FA from initial weights of several sizes."""

    scales: Sequence[float] = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.125, 0.15, 0.2, 0.25)  # [T]
    rate: float = 1e-3  # [T]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The scales."""
        return tuple(f"w = {scale:g}" for scale in self.scales)

    @override
    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        return alignments(students, e)

    @override
    def run(self, task: Task) -> Record:
        scale = self.scales[self.conditions.index(task.condition)]
        return self.learned(task, "fa", self.rate, scale)

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        scales = [scale for scale, name in zip(self.scales, self.conditions, strict=True) if name in records]
        curves = [records[name].curves for name in self.conditions if name in records]
        rows = [
            Row(f"{name} at the end, w = {scale:g}", one[name].last, unit="°")
            for scale, one in zip(scales, curves, strict=True)
            for name in (TO_BP, TO_PBP)
        ]
        claims = []
        if len(scales) > 1:
            claims += [_ordered("closer", "angle at the end", scales, [one[TO_BP].values[:, -1] for one in curves])]
            claims += [_ordered("faster", f"examples to {SOON}°", scales, [_soon(one[TO_BP]) for one in curves])]
        if curves:
            claims += [_nearer("lower", "at the end", scales, curves, lambda curve: curve.values[:, -1])]
            claims += [_nearer("faster", f"examples to {SOON}°", scales, curves, _soon)]
        panels = [
            Panel(
                title=title,
                x="examples",
                y=y,
                lines=[Line.of(f"w = {scale:g}", one[name]) for scale, one in zip(scales, curves, strict=True)],
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
        return Outcome(rows=rows, claims=claims, panels=panels)


def _soon(curve: Curve) -> np.ndarray:
    """Examples until each seed's angle is small; all there are, and one more, where it never is."""
    return np.nan_to_num(reached(curve, SOON), nan=curve.x[-1] + 1)


def _nearer(
    word: str,
    when: str,
    scales: Sequence[float],
    curves: Sequence[Mapping[str, Curve]],
    measure: Callable[[Curve], np.ndarray],
) -> Claim:
    """Whether a measure of the angle to W^+ e is below that of the angle to W^T e, from every scale."""
    pairs = [(float(measure(one[TO_PBP]).mean()), float(measure(one[TO_BP]).mean())) for one in curves]
    told = ", ".join(f"{a:.1f} against {b:.1f} for w = {w:g}" for (a, b), w in zip(pairs, scales, strict=True))
    return Claim(f"The angle to W^+ e falls {word} than that to W^T e", all(a < b for a, b in pairs), f"{when}: {told}")


def _ordered(word: str, measure: str, scales: Sequence[float], values: Sequence[np.ndarray]) -> Claim:
    """Whether a measure rises with the scale, from each to the next, up to two standard errors of the difference."""
    means = [float(one.mean()) for one in values]
    errors = [float(one.std(ddof=1) / len(one) ** 0.5) if len(one) > 1 else 0.0 for one in values]
    rises = all(b > a - 2 * np.hypot(p, q) for a, b, p, q in zip(means, means[1:], errors, errors[1:], strict=False))
    told = ", ".join(f"{mean:.1f} for w = {scale:g}" for mean, scale in zip(means, scales, strict=True))
    return Claim(f"The smaller w, the {word} the alignment", bool(rises and means[-1] > means[0]), f"{measure}: {told}")


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
    rates={"fa": RATES["fa"]},
    readings=(*READINGS, SEARCH),
)
