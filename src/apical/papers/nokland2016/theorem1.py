"""Theorem 1: update directions that are held lower K, and lowering K raises the alignment L of two layers' signals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from apical.data import ImageData
from apical.learner import Learner
from apical.losses import binary_cross_entropy
from apical.measures.tensors import Criteria, alignment_criteria
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.nokland2016.training import MNIST_RATE, Net, Training, per_epoch, start
from apical.papers.outcome import Claim, Line, Outcome, Panel
from apical.papers.record import Record

FIRST, BETWEEN, LAST = "0", "2", "4"
"""Names of the synapses below layer k, from k to k + 1, and above k + 1."""


def held_cost(outputs: Tensor, targets: Tensor) -> Tensor:
    """A cost [N] whose error is 1/2 - onehot whatever the outputs [N, C]: that of logistic outputs before any learning."""
    return (outputs * held_error(outputs, targets)).sum(1)


def held_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """1/2 - onehot [N, C]."""
    return 0.5 - F.one_hot(targets, outputs.shape[1]).to(outputs)


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logistic outputs less their targets [N, C]."""
    return outputs.sigmoid() - F.one_hot(targets, outputs.shape[1]).to(outputs)


@dataclass(frozen=True)
class Layers:
    """Layers k and k + 1 on a batch, in float64: activities h, their update directions dh, and the weights between."""

    h_lower: Tensor
    dh_lower: Tensor
    h_upper: Tensor
    dh_upper: Tensor
    W: Tensor
    bias: Tensor

    @staticmethod
    @torch.no_grad()
    def of(learner: Learner, x: Tensor, y: Tensor, *, held: bool) -> Layers:
        """Those of a tanh network with two hidden layers by "dfa"; held: directions are those before any learning."""
        first, between, last = (learner.synapses[name] for name in (FIRST, BETWEEN, LAST))

        def through(synapse, h):
            return h @ synapse.weight.double().t() + synapse.bias.double()

        lower = through(first, x.double()).tanh()
        upper = through(between, lower).tanh()
        outputs = through(last, upper)
        e = held_error(outputs, y) if held else error(outputs, y)
        assert between.feedback is not None
        assert last.feedback is not None
        assert between.bias is not None
        return Layers(
            lower,
            e @ between.feedback.double(),
            upper,
            e @ last.feedback.double(),
            between.weight.double(),
            between.bias.double(),
        )

    @property
    def slope(self) -> Tensor:
        """The upper layer's f'."""
        return 1 - self.h_upper.square()

    @property
    def criteria(self) -> Criteria:
        """K, L and beta, per sample."""
        return alignment_criteria(self.h_lower, self.dh_lower, self.h_upper, self.dh_upper, self.W, self.slope)

    @property
    def identity(self) -> float:
        """The most by which ||dh_k|| L_k and ||dh_{k+1}|| L_{k+1} differ, over samples, beside the product of all norms."""
        found = self.criteria
        lower, upper = self.dh_lower.norm(dim=1), self.dh_upper.norm(dim=1)
        size = lower * (self.dh_upper * self.slope).norm(dim=1) * self.W.norm()
        apart = (lower * found.L_lower - upper * found.L_upper).abs()
        return float((apart / size.clamp(min=torch.finfo(size.dtype).tiny)).max())

    def step(self, sample: int, size: float, *, held_slope: bool) -> tuple[float, float]:
        """K_k of one sample, and how far its L is raised by a step of W along -da_{k+1}^T h_k.

        held_slope: f' stays as it was before the step, as in the theorem's dL/dW.
        """
        one = slice(sample, sample + 1)
        h, dh, dh_upper, slope = self.h_lower[one], self.dh_lower[one], self.dh_upper[one], self.slope[one]
        W = self.W - size * (dh_upper * slope).t() @ h
        h_upper = (h @ W.t() + self.bias).tanh()
        before = alignment_criteria(h, dh, self.h_upper[one], dh_upper, self.W, slope)
        after = alignment_criteria(h, dh, h_upper, dh_upper, W, slope if held_slope else 1 - h_upper.square())
        return float(before.K_lower), float(after.L - before.L)

    def steepest(self) -> float:
        """The most by which the gradients of K_k and K_{k+1} by the activities differ from the unit directions."""
        h = [self.h_lower.clone().requires_grad_(), self.h_upper.clone().requires_grad_()]
        with torch.enable_grad():
            K = alignment_criteria(h[0], self.dh_lower, h[1], self.dh_upper, self.W, self.slope).K.sum()
            gradients = torch.autograd.grad(K, h)
        units = [dh / dh.norm(dim=1, keepdim=True) for dh in (self.dh_lower, self.dh_upper)]
        return max(float((g - u).abs().max()) for g, u in zip(gradients, units, strict=True))


@dataclass(frozen=True, kw_only=True)
class AlignmentTheorem(Experiment):
    """Two hidden layers by DFA, with update directions that are held, as the theorem has them, or follow the error."""

    net: Net
    rate: float = MNIST_RATE  # [R]
    epochs: int = 5  # [R]
    samples: int = 500
    probed: int = 50
    step_size: float = 1e-4

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the update directions do."""
        return ("directions held", "dfa")

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Minibatches."""
        assert data is not None
        return {"steps": self.epochs * per_epoch(data)}

    def run(self, task: Task) -> Record:
        """Train from zero weights, and look at the criteria on test images."""
        (seed,) = task.seeds
        held = task.condition == "directions held"
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
                "as K says": [self._share(layers, held_slope=True)],
                "as K says, f' too": [self._share(layers, held_slope=False)],
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
        """Percent of samples whose L a step of W raises if K_k < 0, and lowers if K_k > 0."""
        right = []
        for sample in range(min(self.probed, len(layers.h_lower))):
            K, raised = layers.step(sample, self.step_size, held_slope=held_slope)
            if K:
                right.append((raised > 0) == (K < 0))
        return 100 * sum(right) / len(right) if right else math.nan

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The theorem's statements, and the criteria over training."""
        claims = []
        for condition, record in records.items():
            values = {name: curve.values for name, curve in record.curves.items()}
            last = {name: float(np.mean(curve.last)) for name, curve in record.curves.items()}
            start_, identity = float(np.max(values["largest L"][:, 0])), float(np.max(values["identity"]))
            steepest, highest = float(np.max(values["steepest"])), float(values["L"].mean(0).max())
            shares, both = (values[name] for name in ("as K says", "as K says, f' too"))
            told = shares[np.isfinite(shares)]
            share = float(told.min()) if told.size else math.nan
            with_slope = float(both[np.isfinite(both)].mean()) if told.size else math.nan
            claims += [
                Claim(f"{condition}: from W = 0, L = 0", start_ == 0, f"|L| at most {start_:.2g}"),
                Claim(
                    f"{condition}: the directions -dh are those of steepest descent on K",
                    steepest < 1e-12,
                    f"gradients by h differ by at most {steepest:.1g}",
                ),
                Claim(
                    f"{condition}: ||dh_k|| L_k = ||dh_k+1|| L_k+1",
                    identity < 1e-12,
                    f"their difference at most {identity:.1g} of the product of the vectors' lengths, over training and samples",
                ),
                Claim(
                    f"{condition}: a small step of W raises L exactly where K_k < 0, f' held",
                    share == 100,
                    f"{share:.0f} % of samples at worst; with f' at its new value {with_slope:.0f} % on average",
                ),
                Claim(
                    f"{condition}: learning lowers K and raises L, to angles below 90°",
                    last["K"] < 0 and last["L"] > 0 and last["beta"] < 90,
                    f"in the end K {last['K']:.2f}, L {last['L']:.3f} (at its highest {highest:.3f}), beta {last['beta']:.0f}°",
                ),
            ]
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
            claims=claims,
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
