"""Theorems 1 and 2 and Corollary 1: feedback that regresses on node perturbations becomes the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.measures.tensors import relative_error
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Experiment, Task
from apical.papers.lansdell2020.accumulate import regress
from apical.papers.lansdell2020.common import mean, seeded
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record


@dataclass(frozen=True)
class Setting:
    """A network with weights that stand still, and the matrices that its feedback is to become.

    Args:
        sizes: of the layers. activation: between them. rule: np or np-direct. layers: numbers of the matrices looked at.
        noise: c.
    """

    sizes: tuple[int, ...]
    activation: type[nn.Module]
    rule: str
    layers: tuple[int, ...]
    noise: float

    def network(self) -> nn.Sequential:
        """A network with PyTorch's initial weights."""
        layers: list[nn.Module] = []
        for before, after in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(before, after), self.activation()]
        return nn.Sequential(*layers[:-1])

    @property
    def stages(self) -> list[tuple[int, ...]]:
        """The layers in the order in which they are estimated: layer-wise feedback needs the feedback above it."""
        return [self.layers] if self.rule == "np-direct" else [(layer,) for layer in self.layers]

    def errors(self, learner: apical.Learner, layers: tuple[int, ...]) -> dict[str, list[float]]:
        """The errors ||W - B|| / ||W|| of the matrices; direct feedback is compared with the product of all weights above."""
        synapses = list(learner.synapses.values())
        weights = [synapse.weight.detach() for synapse in synapses]
        found = {}
        for layer in layers:
            target = weights[layer - 1]
            if self.rule == "np-direct":
                target = torch.linalg.multi_dot([*reversed(weights[layer - 1 :])]) if layer < len(weights) else target
            found[f"layer {layer}"] = [relative_error(target, synapses[layer - 1].get_buffer("feedback"))]
        return found


SETTINGS = {
    "theorem 1": Setting((20, 15, 10, 6), nn.Tanh, "np", (3,), 0.01),
    "theorem 1, c = 1": Setting((20, 15, 10, 6), nn.Tanh, "np", (3,), 1.0),
    # Widths that do not grow downward, so that errors span every layer (A3).
    "theorem 2": Setting((4, 6, 8, 10), nn.Identity, "np", (3, 2), 0.01),
    "corollary 1": Setting((20, 15, 12, 6), nn.Identity, "np-direct", (3, 2), 0.01),
}


@dataclass(frozen=True, kw_only=True)
class Theorems(Experiment):
    """Ridge regression, gamma 0.1, on random inputs and random targets.

    Args:
        samples: for each stage.
    """

    samples: int = 1_000_000

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the theorems and of the corollary."""
        return tuple(SETTINGS)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of samples."""
        return {"samples": self.samples}

    def run(self, task: Task) -> Record:
        """The record of one seed, whose feedback learns stage by stage."""
        setting, (seed,) = SETTINGS[task.condition], task.seeds
        net = seeded(seed, setting.network)
        stream = torch.Generator().manual_seed(seed)

        def draw(rows: int) -> tuple[Tensor, Tensor]:
            x = torch.randn(rows, setting.sizes[0], generator=stream)
            return x, 0.3 * torch.randn(rows, setting.sizes[-1], generator=stream)

        rule = apical.rule(setting.rule, solver="ridge", gamma=0.1, noise=setting.noise)
        learner = apical.attach(
            net,
            rule,
            example_input=torch.zeros(2, setting.sizes[0]),
            generator=torch.Generator().manual_seed(seed + 10**6),
        )
        curves = {}
        for layers in setting.stages:
            for layer in layers:
                # Forgets the errors that came through unfinished feedback above.
                synapse = learner.synapses[str(2 * layer - 2)]
                synapse.plasticity.prepare(synapse, synapse.get_buffer("feedback").shape, learner.generator)
            curves |= regress(
                task,
                learner,
                task.lengths["samples"],
                draw=draw,
                stream=stream,
                criterion=lambda y, target: (y - target).square().sum(1) / 2,
                measure=lambda layers=layers: setting.errors(learner, layers),
                name=f"layers {layers}",
            )
        return Record(curves=curves)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """Errors of the matrices over samples, and the exponent with which they fall."""
        labelled = {
            f"{condition}, {name}": curve
            for condition, record in records.items()
            for name, curve in record.curves.items()
        }
        rows = [Row(f"relative error, {label}", curve.last) for label, curve in labelled.items()]
        lines = [Line.of(label, curve) for label, curve in labelled.items()]
        panel = Panel(title="", x="samples", y="relative error of B", lines=lines, log_x=True, log_y=True)
        return Outcome(rows=rows, claims=judge(STATEMENTS, measured(records)), panels=[panel], columns=1)


def measured(records: Mapping[str, Record]) -> dict[str, Any]:
    """Values that the statements speak of: every condition's exponents, and its last error of layer 3."""
    values: dict[str, Any] = {}
    for name, record in records.items():
        fitted = [exponent(curve) for curve in record.curves.values()]
        if exponents := [one for one in fitted if one is not None]:
            values[f"exponents, {name}"] = exponents
        values[f"last error, {name}"] = mean(record.curves["layer 3"].last)
    return values


def _falls(condition: str) -> Statement:
    return Statement(
        f"{condition}: the error falls as 1/sqrt(samples)",
        (f"exponents, {condition}",),
        lambda exponents: all(abs(one + 0.5) < 0.1 for one in exponents),
        lambda exponents: "exponents " + ", ".join(f"{one:.2f}" for one in exponents),
    )


STATEMENTS = (
    _falls("theorem 1"),
    _falls("theorem 2"),
    _falls("corollary 1"),
    Statement(
        "theorem 1: B comes to W in the limit of small noise; with c = 1 a bias stays",
        ("last error, theorem 1", "last error, theorem 1, c = 1"),
        lambda small, large: large > 2 * small,
        lambda small, large: f"final error {small:.2g} with c = 0.01, {large:.2g} with c = 1",
    ),
)


def exponent(curve: Curve) -> float | None:
    """The slope of the mean over samples, both in logarithms, over the last hundredfold; None for two points or fewer.

    >>> round(exponent(Curve([1, 10, 100], [[3, 0.3, 0.03]])), 3)
    -1.0
    """
    x, y = np.asarray(curve.x, dtype=float), curve.values.mean(0)
    late = (x >= x[-1] / 100) & (x > 0)
    return float(np.polyfit(np.log(x[late]), np.log(y[late]), 1)[0]) if late.sum() > 2 else None


THEOREMS = Theorems(
    name="lansdell2020/theorems",
    title="Feedback from node perturbation becomes the weights",
    source="Theorems 1 and 2, Corollary 1",
    length="1 000 000 samples",
    seeds=10,
    minutes=1.5,
    together=False,
    readings=(
        "The paper proves and does not simulate these; sizes, inputs N(0, I) and targets of sd 0.3, which make the errors' "
        "covariance full rank (A3), are ours.",
        "Theorem 2 estimates from the top down: a layer's sums start when the one above has seen all its samples.",
    ),
)
