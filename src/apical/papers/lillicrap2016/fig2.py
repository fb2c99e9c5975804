"""Figure 2: a linear function learned by a linear network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from apical.papers.claims import Statement, judge
from apical.papers.lillicrap2016.linear_function import (
    ERROR,
    NOISE,
    QUICKEST_SHALLOW,
    RATES,
    READINGS,
    SEARCH,
    TO_BP,
    LinearFunction,
    reached,
)
from apical.papers.lillicrap2016.online import Students, signal_angles
from apical.papers.outcome import Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

LEVELS = (0.1, 1e-2, 1e-4)
"""Normalized squared errors by which two learning curves are timed."""


def final(curve: Curve) -> float:
    """The mean over seeds of a curve's last value."""
    return float(np.mean(curve.last))


def initial(curve: Curve) -> float:
    """The mean over seeds of a curve's first value."""
    return float(curve.values[:, 0].mean())


def timed(curve: Curve) -> list[float]:
    """Mean number of examples before the error is at each of `LEVELS`; nan for a level that a seed doesn't reach."""
    return [float(reached(curve, level).mean()) for level in LEVELS]


def race(fa: Curve, bp: Curve) -> str:
    """Both rules' examples to each of `LEVELS`, in words."""
    pairs = zip(timed(fa), timed(bp), LEVELS, strict=True)
    return "examples, mean over seeds: " + "; ".join(f"{a:.0f} against {b:.0f} to {level:g}" for a, b, level in pairs)


QUICKEST = "shallow, own rate"

LEARNING = (
    Statement(
        "Shallow learning: the loss hardly decreases (here: at least half of it is left)",
        ("shallow",),
        lambda shallow: final(shallow) >= 0.5,
        lambda shallow: (
            f"final error {final(shallow):.2g}; the least that 20 random hidden units of 30 inputs can leave is about 1/3"
        ),
    ),
    Statement(
        "Shallow learning: the same at the rate at which it is quickest",
        (QUICKEST,),
        lambda shallow: final(shallow) >= 0.5,
        lambda shallow: f"final error {final(shallow):.2g}",
        kind="ours",
    ),
    Statement(
        "Node perturbation learns, but slowly",
        ("reinforce", "bp"),
        lambda np_, bp: final(bp) * 10 < final(np_) < initial(np_) / 2,
        lambda np_, bp: f"from {initial(np_):.2g} to {final(np_):.2g}; backpropagation ends at {final(bp):.2g}",
    ),
    Statement(
        "Backpropagation: the loss goes rapidly to zero",
        ("bp",),
        lambda bp: final(bp) < 1e-3,
        lambda bp: f"final error {final(bp):.2g}",
    ),
    Statement(
        "Feedback alignment learns as quickly as backpropagation (here: with at most a quarter more examples)",
        ("fa", "bp"),
        lambda fa, bp: all(a <= 1.25 * b for a, b in zip(timed(fa), timed(bp), strict=True)),
        race,
    ),
)
"""Of the rules' learning curves."""

# A picture of the preprint's figure, read by eye.
PUBLISHED = {
    "shallow": Published(math.log10(0.5), tag="T", to=math.log10(0.9)),
    "reinforce": Published(-2.3, tag="T"),
    "bp": Published(-11.0, tag="T"),
    "fa": Published(-12.0, tag="T"),
}


@dataclass(frozen=True, kw_only=True)
class FourAlgorithms(LinearFunction):
    """Figure 2a: the learning curves of four rules."""

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        curves = {rule: record.curves[ERROR] for rule, record in records.items()}
        rows = [
            Row(
                f"log10 of the final normalized squared error, seed by seed, {rule}",
                np.log10(curve.last).tolist(),
                PUBLISHED.get(rule),
            )
            for rule, curve in curves.items()
        ]
        panel = Panel(
            title="a",
            x="examples",
            y="normalized squared error",
            lines=[Line.of(rule, curve) for rule, curve in curves.items()],
            log_y=True,
        )
        return Outcome(rows=rows, claims=judge(LEARNING, curves), panels=[panel], columns=1)


def when(curve: Curve, level: float) -> str:
    """The mean number of examples before a curve is at or below a level, in words."""
    mean = reached(curve, level).mean()
    return f"{mean:.0f} examples" if np.isfinite(mean) else "more examples than there were"


POSITIVE, PART = "mean of e^T W B e over that of its lengths", "samples with e^T W B e > 0"


def products(e: Tensor, W: Tensor, B: Tensor) -> dict[str, list[float]]:
    """How far (e W) and (e B) point the same way: their product's mean over samples, in units of |e W| |e B|, and its sign.

    Args:
        e: errors [seeds, N, outputs]. W, B: [seeds, outputs, units].
    """
    through_w, through_b = e @ W, e @ B
    product = (through_w * through_b).sum(2)
    size = (through_w.norm(dim=2) * through_b.norm(dim=2)).mean(1)
    return {
        POSITIVE: (product.mean(1) / size.clamp(min=torch.finfo(size.dtype).tiny)).tolist(),
        PART: (100 * (product > 0).float().mean(1)).tolist(),
    }


def learned_positive(mean: Curve) -> bool:
    """True if every seed's mean product is positive at all times after a tenth of the examples."""
    x = np.asarray(mean.x)
    return bool((mean.values[:, x >= x[-1] / 10] > 0).all())


CONDITION = (
    Statement(
        "e^T W B e > 0 on average over samples, which suffices to learn (here: from every seed, after a tenth of the examples)",
        (POSITIVE, PART),
        lambda mean, part: learned_positive(mean),
        lambda mean, part: (
            f"{mean.values[:, -1].min():.2f} of |e W| |e B| or more at the end; it is positive for {initial(part):.0f} % of the "
            f"samples before learning and {final(part):.0f} % at the end"
        ),
    ),
)
"""Of the product of FA's signal and BP's."""

TURNING = (
    Statement(
        "The angle starts at about 90 degrees",
        ("angle",),
        lambda angle: abs(initial(angle) - 90) < 10,
        lambda angle: f"{initial(angle):.1f} before the first example, mean over seeds",
    ),
    Statement(
        "It soon shrinks (here: below 45 degrees within a quarter of the examples)",
        ("angle",),
        lambda angle: reached(angle, 45).mean() <= angle.x[-1] / 4,
        lambda angle: f"below 45 after {when(angle, 45)}; {angle.values[:, -1].mean():.1f} at the end",
    ),
    Statement(
        "It never reaches zero",
        ("angle",),
        lambda angle: angle.values.min() > 1,
        lambda angle: f"the smallest of any seed at any time is {angle.values.min():.1f}",
    ),
)
"""Of the angle between FA's signal and BP's."""


@dataclass(frozen=True, kw_only=True)
class Angle(LinearFunction):
    """Figure 2b: the angle between the modulators of FA and BP in the same runs."""

    @override
    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        W, B = students.weight("1"), students.feedback("1")
        return {TO_BP: signal_angles(e, B, W), **products(e, W, B)}

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        if "fa" not in records:
            return Outcome()
        curves = records["fa"].curves
        curve = curves[TO_BP]
        rows = [
            Row("angle at the end", curve.values[:, -1].tolist(), Published(30, tag="T"), "°"),
            *(Row(f"{name}, at the end", curves[name].last, unit="%") for name in (PART,) if name in curves),
        ]
        panel = Panel(
            title="b",
            x="examples",
            y="angle of delta FA to delta BP, °",
            lines=[Line.of("fa", curve)],
            low=0,
            high=100,
            marks=(90,),
        )
        claims = judge((*TURNING, *CONDITION), {"angle": curve, **curves})
        return Outcome(rows=rows, claims=claims, panels=[panel], columns=1)


FIG2A = FourAlgorithms(
    name="lillicrap2016/fig2a",
    title="A linear network learns a linear function by random feedback",
    source="Figure 2a; Methods, linear task",
    length="2000 examples",
    seeds=20,
    minutes=0.5,
    rates={**{rule: RATES[rule] for rule in ("shallow", "reinforce", "bp", "fa")}, QUICKEST: QUICKEST_SHALLOW},
    noise=NOISE,
    readings=(*READINGS, SEARCH),
)
FIG2B = Angle(
    name="lillicrap2016/fig2b",
    title="Feedback alignment's signal comes to lie within 90 degrees of backpropagation's",
    source="Figure 2b",
    length="2000 examples",
    seeds=20,
    minutes=0.2,
    rates={"fa": RATES["fa"]},
    readings=(*READINGS, SEARCH),
)
