"""Figure 2: a linear function learned by a linear network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

import apical
from apical.data import ImageData
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Claim, Line, Outcome, Panel
from apical.papers.record import Record


@dataclass(frozen=True, kw_only=True)
class LinearFunction(Experiment):
    """A 30-20-10 network without biases learns y* = T x online, one example per step."""

    rules: tuple[str, ...] = ("shallow", "bp", "fa")
    examples: int = 2000  # [T]
    rate: float = 1e-3  # [T]; the paper's were found by hand for each algorithm
    weights: float = 0.01
    feedback: float = 0.5

    @property
    def conditions(self) -> tuple[str, ...]:
        """The rules."""
        return self.rules

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Examples."""
        return {"examples": self.examples}

    def run(self, task: Task) -> Record:
        """All seeds at once, as copies of one network."""
        n, examples = len(task.seeds), task.lengths["examples"]
        T = torch.empty(10, 30).uniform_(-1, 1, generator=torch.Generator().manual_seed(2016))
        copies = apical.replicate([self._network(seed) for seed in task.seeds])
        test = torch.randn(500, 30, generator=torch.Generator().manual_seed(1))
        learner = apical.attach(copies, task.condition, example_input=test[:1].expand(n, 1, 30))
        self._set_feedback(learner, task)
        optimizer = apical.LocalSGD(learner, lr=self.rate)
        draws = [torch.Generator().manual_seed(seed) for seed in task.seeds]

        def learn(step: int) -> None:
            x = torch.stack([torch.randn(1, 30, generator=draw) for draw in draws])
            error = copies(x) - x @ T.t()
            (error.square().sum() / 2).backward()
            optimizer.step()

        @torch.no_grad()
        def measure() -> dict[str, list[float]]:
            y = test @ T.t()
            errors = (copies(test.expand(n, -1, -1)) - y).square().sum((1, 2)) / (y - y.mean(0)).square().sum()
            return {"normalized squared error": errors.tolist()}

        parts = {
            "model": copies,
            "optimizer": optimizer,
            **{f"draw {s}": d for s, d in zip(task.seeds, draws, strict=True)},
        }
        return Record(
            curves=course(task, examples, learn=learn, measure=measure, at=spread(examples, 100), parts=parts)
        )

    def _network(self, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Linear(20, 10, bias=False))
        for weight in net.parameters():
            nn.init.uniform_(weight, -self.weights, self.weights, generator=generator)
        return net

    @torch.no_grad()
    def _set_feedback(self, learner: apical.Learner, task: Task) -> None:
        for synapse in learner.synapses.values():
            feedback = getattr(synapse, "feedback", None)
            if feedback is not None and task.condition == "fa":
                for seed, own in zip(task.seeds, feedback.chunk(len(task.seeds)), strict=True):
                    own.uniform_(-self.feedback, self.feedback, generator=torch.Generator().manual_seed(seed + 10**6))

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The curves, and whether they are ordered as the paper says."""
        curves = {rule: record.curves["normalized squared error"] for rule, record in records.items()}
        claims = []
        if {"bp", "fa"} <= curves.keys():
            ours, theirs = curves["fa"].values.mean(0), curves["bp"].values.mean(0)
            claims.append(
                Claim(
                    "FA learns as quickly as BP",
                    bool(ours[-1] < 2 * theirs[-1]),
                    f"final error {ours[-1]:.2g} against {theirs[-1]:.2g}",
                )
            )
        panel = Panel(
            title="a",
            x="examples",
            y="normalized squared error",
            lines=[Line.of(rule, curve) for rule, curve in curves.items()],
            log_y=True,
        )
        return Outcome(claims=claims, panels=[panel], columns=1)


FIG2A = LinearFunction(
    name="lillicrap2016/fig2a",
    title="A linear network learns a linear function by random feedback",
    source="Figure 2a; Methods, linear task",
    length="2000 examples",
    seeds=20,
    minutes=0.5,
    readings=("x ~ N(0, I), rate 1e-3 and 2000 examples for all rules: third-party reproductions [T].",),
)
