"""Theorem 1: update directions that are held lower K, and lowering K raises the alignment L of two layers' signals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import override

from apical.data import ImageData
from apical.losses import binary_cross_entropy
from apical.papers.claims import Statement, judge
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task, given
from apical.papers.nokland2016.criteria import Layers, held_cost
from apical.papers.nokland2016.training import MNIST_RATE, Net, Training, per_epoch, start
from apical.papers.outcome import Kind, Line, Outcome, Panel
from apical.papers.record import Curve, Record

HELD, FOLLOWED = "directions held", "dfa"
"""Update directions stay as before any learning, or follow the error."""
AS_K_SAYS, SLOPE_TOO = "as K says", "as K says, f' too"
"""Percent of samples whose L moves as the sign of K says, with f' held and with f' at its new value."""


@dataclass(frozen=True)
class Seen:
    """The criteria over training, in one condition."""

    curves: Mapping[str, Curve]

    def largest(self, name: str) -> float:
        """The largest value of any seed at any time."""
        return float(np.max(self.curves[name].values))

    def last(self, name: str) -> float:
        """The mean over seeds at the end."""
        return float(np.mean(self.curves[name].last))

    def known(self, name: str) -> np.ndarray:
        """All values that are numbers; one that is none if there are no others."""
        values = self.curves[name].values
        return values[np.isfinite(values)] if np.isfinite(values).any() else np.array([math.nan])

    @property
    def start(self) -> float:
        """The largest |L| before learning."""
        return float(np.max(self.curves["largest L"].values[:, 0]))

    @property
    def ends(self) -> str:
        """The criteria at the end, in words."""
        K, L, beta = (self.last(name) for name in ("K", "L", "beta"))
        highest = float(self.curves["L"].mean.max())
        return f"in the end K {K:.2f}, L {L:.3f} (at its highest {highest:.3f}), beta {beta:.0f}°"


def theorem(condition: str, kind: Kind) -> tuple[Statement, ...]:
    """The statements of the theorem, and identities among its criteria, judged in one condition; `kind` is the former's."""
    return (
        Statement(
            f"{condition}: from W = 0, L = 0",
            (condition,),
            lambda seen: seen.start == 0,
            lambda seen: f"|L| at most {seen.start:.2g}",
            kind,
        ),
        Statement(
            f"{condition}: the directions -dh are those of steepest descent on K",
            (condition,),
            lambda seen: seen.largest("steepest") < 1e-12,
            lambda seen: f"gradients by h differ by at most {seen.largest('steepest'):.1g}",
            "derived",
        ),
        Statement(
            f"{condition}: ||dh_k|| L_k = ||dh_k+1|| L_k+1",
            (condition,),
            lambda seen: seen.largest("identity") < 1e-12,
            lambda seen: (
                f"their difference at most {seen.largest('identity'):.1g} of the product of the vectors' lengths, "
                "over training and samples"
            ),
            "derived",
        ),
        Statement(
            f"{condition}: a small step of W raises L exactly where K_k < 0, f' held",
            (condition,),
            lambda seen: seen.known(AS_K_SAYS).min() == 100,
            lambda seen: (
                f"{seen.known(AS_K_SAYS).min():.0f} % of samples at worst; "
                f"with f' at its new value {seen.known(SLOPE_TOO).mean():.0f} % on average"
            ),
            kind,
        ),
        Statement(
            f"{condition}: learning lowers K and raises L, to angles below 90°",
            (condition,),
            lambda seen: seen.last("K") < 0 < seen.last("L") and seen.last("beta") < 90,
            lambda seen: seen.ends,
            kind,
        ),
    )


# The theorem is about directions that are held.
STATEMENTS = (*theorem(HELD, "paper"), *theorem(FOLLOWED, "ours"))


@dataclass(frozen=True, kw_only=True)
class AlignmentTheorem(Experiment):
    """Two hidden layers by DFA, with update directions that are held, as the theorem has them, or follow the error."""

    # Weights start at zero; the criteria are looked at on test images.
    net: Net
    rate: float = MNIST_RATE  # [R]
    epochs: int = 5  # [R]
    samples: int = 500
    probed: int = 50
    step_size: float = 1e-4

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return (HELD, FOLLOWED)

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"steps": self.epochs * per_epoch(given(data))}

    @override
    def run(self, task: Task) -> Record:
        (seed,) = task.seeds
        held = task.condition == HELD
        learner = start(self.net, "dfa", task.data, seed)
        cost = held_cost if held else binary_cross_entropy
        training = Training(learner.model, task.data, task.seeds, rate=self.rate, cost=cost)
        x, y = task.data.test.batch(torch.arange(min(self.samples, len(task.data.test))))

        def measure() -> dict[str, list[float]]:
            layers = Layers.of(learner, x.flatten(1), y, held=held)
            found = layers.criteria
            return {
                "K": [float(found.K.mean())],
                "L": [float(found.L.mean())],
                "beta": [float(found.beta.nanmean())],
                "largest L": [float(found.L.abs().max())],
                "identity": [layers.identity],
                "steepest": [layers.steepest()],
                AS_K_SAYS: [self._share(layers, held_slope=True)],
                SLOPE_TOO: [self._share(layers, held_slope=False)],
            }

        steps = task.lengths["steps"]
        curves = course(
            task,
            steps,
            learn=training.learn,
            measure=measure,
            at=spread(steps, 40, logarithmic=True),
            parts={"training": training},
        )
        return Record(curves=curves)

    def _share(self, layers: Layers, *, held_slope: bool) -> float:
        """The percent of samples whose L a step of W raises if K_k < 0, and lowers if K_k > 0."""
        right = []
        for sample in range(min(self.probed, len(layers.h_lower))):
            K, raised = layers.step(sample, self.step_size, held_slope=held_slope)
            if K:
                right.append((raised > 0) == (K < 0))
        return 100 * sum(right) / len(right) if right else math.nan

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        panels = [
            Panel(
                title=name,
                x="steps",
                y=label,
                lines=[Line.of(condition, record.curves[name]) for condition, record in records.items()],
                log_x=True,
                marks=[mark],
            )
            for name, label, mark in (("K", "K", 0.0), ("L", "L", 0.0), ("beta", "angle of dh to c [°]", 90.0))
        ]
        return Outcome(
            claims=judge(STATEMENTS, {condition: Seen(record.curves) for condition, record in records.items()}),
            panels=panels,
            columns=3,
            notes=(
                "L falls again where tanh saturates: the theorem's dL/dW holds f' constant, and there f' goes to zero.",
            ),
        )


THEOREM1 = AlignmentTheorem(
    name="nokland2016/theorem1",
    title="K, L and the angle beta of two layers, 2x100 tanh on MNIST",
    source="Theorem 1, eqs 11-19",
    length="5 epochs",
    seeds=3,
    minutes=1.5,
    data="ylecun/mnist",
    together=False,
    net=Net(2, 100),  # [R]
    readings=(
        "The paper proves the theorem and shows no run of it; network, rate and length are ours.",
        "Directions that are held are e D with the error of logistic outputs before any learning, 1/2 - onehot.",
        "The criteria are means over 500 test images.",
    ),
)
