"""The matrix that two linear layers conserve while they learn with partly updated feedback (eq. 16 for matrices)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.papers.amit2019.decoupled import EPSILONS
from apical.papers.claims import Statement, judge
from apical.papers.course import Measures, course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Curve, Record

SIZES = (12, 20, 8)
HALVINGS = (1, 2, 4)
"""Steps per unit of the coarsest one."""


def conserved(W1: Tensor, W2: Tensor, R2: Tensor, epsilon: float) -> Tensor:
    """The conserved matrix W1 W1^T - R2(0) W2 - W2^T R2(0)^T - eps W2^T W2 [hidden, hidden]; R2 [hidden, out] is R2(0)."""
    crossed = R2 @ W2
    return W1 @ W1.t() - crossed - crossed.t() - epsilon * W2.t() @ W2


@dataclass(frozen=True, kw_only=True)
class Conservation(Experiment):
    """A linear 12-20-8 network learns y = T x from X = I by steps that are halved twice; under the flow the law is exact.

    Args:
        iterations: with the coarsest step. step: the coarsest. sd: of the entries of W(0) and R(0).
    """

    iterations: int = 500
    step: float = 0.01
    sd: float = 0.2  # [R]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of every epsilon."""
        return tuple(EPSILONS)

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of steps of the coarsest size."""
        return {"iterations": self.iterations}

    def run(self, task: Task) -> Record:
        """The record of all seeds as copies, trained once for every size of step."""
        curves = {}
        for halving in HALVINGS:
            own = self._trained(task, EPSILONS[task.condition], halving)
            curves |= {f"{name}, step / {halving}": curve for name, curve in own.items()}
        return Record(curves=curves)

    def _trained(self, task: Task, epsilon: float, halving: int) -> Mapping[str, Curve]:
        nets, feedback, targets = zip(*(self._drawn(seed) for seed in task.seeds), strict=True)
        n = len(nets)
        copies = apical.replicate(list(nets))
        learner = apical.attach(
            copies, apical.rule("urfb", epsilon=epsilon), example_input=torch.zeros(n, 1, SIZES[0], dtype=torch.float64)
        )
        lower, upper = learner.synapses.values()
        upper.feedback = torch.cat([R.t() + epsilon * W for R, W in zip(feedback, upper.weight.chunk(n), strict=True)])
        optimizer = apical.LocalSGD(learner, lr=self.step / halving)
        X, T = torch.eye(SIZES[0], dtype=torch.float64).expand(n, -1, -1), torch.stack(targets)

        def laws() -> list[Tensor]:
            weights = zip(lower.weight.chunk(n), upper.weight.chunk(n), feedback, strict=True)
            return [conserved(W1, W2, R, epsilon) for W1, W2, R in weights]

        with torch.no_grad():
            before = laws()

        def learn(step: int) -> None:
            ((copies(X) - T).square().sum() / 2).backward()
            optimizer.step()

        @torch.no_grad()
        def measure() -> Measures:
            errors = (copies(X) - T).square().sum((1, 2))
            # Against a part that does change, so that the number says how much of the change cancels.
            drift = [
                float((now - then).norm() / (W1 @ W1.t()).norm())
                for now, then, W1 in zip(laws(), before, lower.weight.chunk(n), strict=True)
            ]
            return {"drift": drift, "squared error": errors.tolist()}

        steps = task.lengths["iterations"] * halving
        return course(
            task,
            steps,
            learn=learn,
            measure=measure,
            at=spread(steps, 50),
            parts={"model": copies, "optimizer": optimizer},
            name=f"step-{halving}",
            x=lambda step: step * self.step / halving,
        )

    def _drawn(self, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
        """A network, R2(0) [hidden, out] and the target [in, out]."""
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape: int, sd: float = self.sd) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64) * sd

        inputs, hidden, outputs = SIZES
        net = nn.Sequential(
            nn.Linear(inputs, hidden, bias=False, dtype=torch.float64),
            nn.Linear(hidden, outputs, bias=False, dtype=torch.float64),
        )
        net.load_state_dict({"0.weight": normal(hidden, inputs), "1.weight": normal(outputs, hidden)})
        return net, normal(hidden, outputs), normal(inputs, hidden, sd=0.5) @ normal(hidden, outputs, sd=0.5)

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The drift of the conserved matrix, and the ratio by which it shrinks with the step."""
        drifts = {
            name: [max(record.curves[f"drift, step / {halving}"].last) for halving in HALVINGS]
            for name, record in records.items()
        }
        rows = [
            Row(f"{name}: drift, step {self.step / halving:g}", [drift])
            for name, found in drifts.items()
            for halving, drift in zip(HALVINGS, found, strict=True)
        ]
        ratios = {name: [a / b for a, b in pairwise(found)] for name, found in drifts.items()}
        claims = judge([HALVED], {"ratios": ratios} if ratios else {})
        panels = [
            Panel(
                title=title,
                x="time",
                y=title,
                lines=[
                    Line.of(f"{name}, step {self.step / halving:g}", record.curves[f"{measure}, step / {halving}"])
                    for name, record in records.items()
                    for halving in halvings
                ],
                log_y=measure == "squared error",
            )
            for title, measure, halvings in (
                ("drift of the conserved matrix", "drift", HALVINGS),
                ("squared error", "squared error", HALVINGS[-1:]),
            )
        ]
        return Outcome(rows=rows, claims=claims, panels=panels)


HALVED = Statement(
    "The flow conserves W1 W1ᵀ − R2(0) W2 − W2ᵀ R2(0)ᵀ − ε W2ᵀ W2: what steps leave of it halves with the step",
    ("ratios",),
    lambda ratios: all(1.8 < ratio < 2.2 for found in ratios.values() for ratio in found),
    lambda ratios: (
        "drift with the coarsest step over that with half and quarter of it: "
        + "; ".join(f"{name} " + ", ".join(f"{ratio:.2f}" for ratio in found) for name, found in ratios.items())
    ),
    "derived",
)

CONSERVATION = Conservation(
    name="amit2019/conservation",
    title="Two linear layers conserve a matrix",
    source="Section 5, Appendix 2; eq. 16 for matrices",
    length="500 steps of 0.01",
    seeds=5,
    minutes=0.3,
    readings=(
        "The paper states the law for one number per layer (eq. 16); this is its matrix form.",
        "Drift: norm of the change of the conserved matrix over the norm of W1 W1ᵀ; largest of the runs.",
        "The network is trained by the library's urfb; its steps of size h follow the flow to first order in h.",
    ),
)
