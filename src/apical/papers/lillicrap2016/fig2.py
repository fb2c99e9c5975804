"""Figure 2: a linear function learned by a linear network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.lillicrap2016.online import Pairs, Students, drawn, normalized_squared_error, signal_angles, uniform
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

INPUTS, HIDDEN, OUTPUTS = 30, 20, 10
ERROR, TO_BP = "normalized squared error", "angle of delta FA to delta BP"


def network(seed: int, weights: float) -> nn.Sequential:
    """A 30-20-10 linear network without biases, both layers from U[-weights, weights]."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(HIDDEN, OUTPUTS, bias=False))
    for weight in net.parameters():
        nn.init.uniform_(weight, -weights, weights, generator=generator)
    return net


@dataclass(frozen=True, kw_only=True)
class LinearFunction(Experiment):
    """A 30-20-10 network without biases learns y* = T x online, one example per step.

    Args:
        rates: rule -> learning rate; the paper's were found by hand for each algorithm, for speed, and are not printed.
        noise: standard deviation of the perturbation. examples: to learn from.
        weights: W_0, W from U[-weights, weights]. feedback: B from U[-feedback, feedback].
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    noise: float = 1.0
    examples: int = 2000  # [T]
    weights: float = 0.01
    feedback: float = 0.5

    @property
    def conditions(self) -> tuple[str, ...]:
        """The rules."""
        return tuple(self.rates)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Examples."""
        return {"examples": self.examples}

    def run(self, task: Task) -> Record:
        """All seeds at once, as copies of one network."""
        return self.learned(task, task.condition, self.rates[task.condition], self.weights)

    def rule(self, condition: str) -> apical.Rule:
        """The rule of a condition."""
        hyperparameters = {"fa": {"init": uniform(self.feedback)}, "reinforce": {"noise": self.noise}}
        return apical.rule(condition, **hyperparameters.get(condition, {}))

    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        """Angles to measure beside the error, given the errors e [seeds, N, outputs] of held-out examples."""
        return {}

    def learned(self, task: Task, rule: str, rate: float, weights: float) -> Record:
        """The curves of one training of all seeds."""
        T = drawn((OUTPUTS, INPUTS), 1.0, 2016)
        pairs = Pairs(task.seeds, INPUTS, lambda x: x @ T.t())
        students = Students(
            lambda seed: network(seed, weights),
            self.rule(rule),
            task.seeds,
            inputs=INPUTS,
            rate=rate,
        )
        x, y = pairs.held_out(500)
        examples = task.lengths["examples"]

        def measure() -> dict[str, list[float]]:
            outputs = students.outputs(x)
            return {ERROR: normalized_squared_error(outputs, y), **self.angles(students, outputs - y)}

        found = course(
            task,
            examples,
            learn=lambda step: students.learn(*pairs(step)),
            measure=measure,
            at=spread(examples, 100),
            parts=students.parts,
        )
        return Record(curves=found)


def reached(curve: Curve, level: float) -> np.ndarray:
    """The first x at which each seed's curve is at or below a level [seeds]; nan where it never is."""
    below = curve.values <= level
    return np.where(below.any(1), np.asarray(curve.x, dtype=float)[below.argmax(1)], np.nan)


@dataclass(frozen=True, kw_only=True)
class FourAlgorithms(LinearFunction):
    """Figure 2a: the learning curves."""

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        curves = {rule: record.curves[ERROR] for rule, record in records.items()}
        final = {rule: np.asarray(curve.last) for rule, curve in curves.items()}
        # A picture of the preprint's figure, read by eye.
        published = {
            "shallow": Published(math.log10(0.5), tag="T", to=math.log10(0.9)),
            "reinforce": Published(-2.3, tag="T"),
            "bp": Published(-11.0, tag="T"),
            "fa": Published(-12.0, tag="T"),
        }
        rows = [
            Row(
                f"log10 of the final normalized squared error, seed by seed, {rule}",
                np.log10(final[rule]).tolist(),
                published.get(rule),
            )
            for rule in final
        ]
        claims = []
        if "shallow" in final:
            claims.append(
                Claim(
                    "Shallow learning: the loss hardly decreases (here: at least half of it is left)",
                    bool(final["shallow"].mean() >= 0.5),
                    f"final error {final['shallow'].mean():.2g}; the least that 20 random hidden units of 30 inputs can leave is "
                    "about 1/3",
                )
            )
        if {"reinforce", "bp"} <= final.keys():
            start, end = curves["reinforce"].values[:, 0].mean(), final["reinforce"].mean()
            claims.append(
                Claim(
                    "Node perturbation learns, but slowly",
                    bool(final["bp"].mean() * 10 < end < start / 2),
                    f"from {start:.2g} to {end:.2g}; backpropagation ends at {final['bp'].mean():.2g}",
                )
            )
        if "bp" in final:
            claims.append(
                Claim(
                    "Backpropagation: the loss goes rapidly to zero",
                    bool(final["bp"].mean() < 1e-3),
                    f"final error {final['bp'].mean():.2g}",
                )
            )
        if {"bp", "fa"} <= final.keys():
            claims.append(self._as_quick(curves["fa"], curves["bp"]))
        panel = Panel(
            title="a",
            x="examples",
            y="normalized squared error",
            lines=[Line.of(rule, curve) for rule, curve in curves.items()],
            log_y=True,
        )
        return Outcome(rows=rows, claims=claims, panels=[panel], columns=1)

    @staticmethod
    def _as_quick(fa: Curve, bp: Curve) -> Claim:
        levels = (0.1, 1e-2, 1e-4)
        ours, theirs = ([float(reached(curve, level).mean()) for level in levels] for curve in (fa, bp))
        told = "; ".join(
            f"{a:.0f} against {b:.0f} to {level:g}" for a, b, level in zip(ours, theirs, levels, strict=True)
        )
        return Claim(
            "Feedback alignment learns as quickly as backpropagation (here: with at most a quarter more examples)",
            all(a <= 1.25 * b for a, b in zip(ours, theirs, strict=True)),
            f"examples, mean over seeds: {told}",
        )


@dataclass(frozen=True, kw_only=True)
class Angle(LinearFunction):
    """Figure 2b: the angle between the modulators of FA and BP in the same runs."""

    @override
    def angles(self, students: Students, e: Tensor) -> dict[str, list[float]]:
        return {TO_BP: signal_angles(e, students.feedback("1"), students.weight("1"))}

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        if "fa" not in records:
            return Outcome()
        curve = records["fa"].curves[TO_BP]
        values = curve.values
        first, last, least = values[:, 0].mean(), values[:, -1].mean(), values.min()
        claims = [
            Claim(
                "The angle starts at about 90 degrees",
                bool(abs(first - 90) < 10),
                f"{first:.1f} before the first example, mean over seeds",
            ),
            Claim(
                "It soon shrinks (here: below 45 degrees within a quarter of the examples)",
                bool(reached(curve, 45).mean() <= curve.x[-1] / 4),
                f"below 45 after {_when(curve, 45)}; {last:.1f} at the end",
            ),
            Claim("It never reaches zero", bool(least > 1), f"the smallest of any seed at any time is {least:.1f}"),
        ]
        rows = [Row("angle at the end", values[:, -1].tolist(), Published(30, tag="T"), "°")]
        panel = Panel(
            title="b",
            x="examples",
            y="angle of delta FA to delta BP, °",
            lines=[Line.of("fa", curve)],
            low=0,
            high=100,
            marks=(90,),
        )
        return Outcome(rows=rows, claims=claims, panels=[panel], columns=1)


def _when(curve: Curve, level: float) -> str:
    when = reached(curve, level).mean()
    return f"{when:.0f} examples" if np.isfinite(when) else "more examples than there were"


READINGS = (
    "x ~ N(0, 1) and 2000 examples: third-party reproductions [T].",
    "The normalized error divides by the variance of each output around its own mean; 500 held-out examples.",
)
# [R] By search for speed, see SEARCH.
RATES = {"shallow": 10.0, "reinforce": 3e-3, "bp": 0.01, "fa": 0.01}
NOISE = 0.01  # [R]
SEARCH = (
    "Rates by search for speed (the paper's by hand, not printed), as there by the error that is shown: the least mean log "
    "error over the run, of ten other seeds. bp and fa: 1e-3 to 2e-2 in steps of 1, 2, 5, 7; next to the 0.01 chosen, fa "
    "diverges at 0.012, and bp is slower at 0.012 and diverges at 0.02. Shallow: 1e-3 to 50 in steps of 1, 2, 5. Node "
    "perturbation: 1e-4 to 3e-3 in steps of 1, 2, 3 (5e-3 diverges) with noise 0.01; noise 0.03 and 0.3 are slower. "
    "Shallow learning is as quick as it can be at 10; at 0.1 and 1e-3 it leaves 0.80 and 1.00 of the error."
)
FIG2A = FourAlgorithms(
    name="lillicrap2016/fig2a",
    title="A linear network learns a linear function by random feedback",
    source="Figure 2a; Methods, linear task",
    length="2000 examples",
    seeds=20,
    minutes=0.5,
    rates=RATES,
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
