"""Theorems 1 and 2 and Corollary 1: feedback that regresses on node perturbations becomes the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.measures.tensors import relative_error
from apical.papers.experiment import Experiment, Task
from apical.papers.lansdell2020.accumulate import regress
from apical.papers.lansdell2020.common import mean, seeded
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record


@dataclass(frozen=True)
class Setting:
    """A network with weights that stand still, and the matrices that its feedback is to become.

    sizes: of the layers. activation: between them. rule: np or np-direct. layers: numbers of the matrices that are looked at.
    noise: c.
    """

    sizes: tuple[int, ...]
    activation: type[nn.Module]
    rule: str
    layers: tuple[int, ...]
    noise: float

    def network(self) -> nn.Sequential:
        """With PyTorch's initial weights."""
        layers: list[nn.Module] = []
        for before, after in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(before, after), self.activation()]
        return nn.Sequential(*layers[:-1])

    @property
    def stages(self) -> list[tuple[int, ...]]:
        """Layers in the order in which they are estimated: layer-wise feedback needs what lies above it."""
        return [self.layers] if self.rule == "np-direct" else [(layer,) for layer in self.layers]

    def errors(self, learner: apical.Learner, layers: tuple[int, ...]) -> dict[str, list[float]]:
        """||W - B|| / ||W|| of the matrices; direct feedback is compared with the product of all weights above."""
        synapses = list(learner.synapses.values())
        weights = [synapse.weight.detach() for synapse in synapses]
        found = {}
        for layer in layers:
            target = weights[layer - 1]
            if self.rule == "np-direct":
                target = torch.linalg.multi_dot([*reversed(weights[layer - 1 :])]) if layer < len(weights) else target
            feedback = synapses[layer - 1].feedback
            assert feedback is not None
            found[f"layer {layer}"] = [relative_error(target, feedback)]
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
    """Ridge regression, gamma 0.1, on random inputs and random targets."""

    samples: int = 1_000_000

    @property
    def conditions(self) -> tuple[str, ...]:
        """The statements."""
        return tuple(SETTINGS)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Samples."""
        return {"samples": self.samples}

    def run(self, task: Task) -> Record:
        """One seed."""
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
                assert synapse.feedback is not None
                synapse.plasticity.prepare(synapse, synapse.feedback.shape, learner.generator)
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
        rows, claims, lines = [], [], []
        for condition, record in records.items():
            exponents = []
            for name, curve in record.curves.items():
                label = f"{condition}, {name}"
                rows.append(Row(f"relative error, {label}", curve.last))
                lines.append(Line.of(label, curve))
                fitted = exponent(curve)
                if fitted is not None:
                    exponents.append(fitted)
            if exponents and condition != "theorem 1, c = 1":
                claims.append(
                    Claim(
                        f"{condition}: the error falls as 1/sqrt(samples)",
                        all(abs(one + 0.5) < 0.1 for one in exponents),
                        "exponents " + ", ".join(f"{one:.2f}" for one in exponents),
                    )
                )
        if {"theorem 1", "theorem 1, c = 1"} <= records.keys():
            small, large = (mean(records[name].curves["layer 3"].last) for name in ("theorem 1", "theorem 1, c = 1"))
            claims.append(
                Claim(
                    "theorem 1: B comes to W in the limit of small noise; with c = 1 a bias stays",
                    large > 2 * small,
                    f"final error {small:.2g} with c = 0.01, {large:.2g} with c = 1",
                )
            )
        panel = Panel(title="", x="samples", y="relative error of B", lines=lines, log_x=True, log_y=True)
        return Outcome(rows=rows, claims=claims, panels=[panel], columns=1)


def exponent(curve: Curve) -> float | None:
    """Slope of the logarithm of the mean over the logarithm of samples, over the last hundredfold; None for a few points."""
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
