"""Training of a network on a text by AdamW, measured along the way, resumable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import apical
from apical.data.images import Split
from apical.losses import cross_entropy, scores
from apical.networks import build
from apical.networks.users import zeros
from apical.papers.course import course, spread
from apical.papers.experiment import Task
from apical.papers.record import Curve
from apical.training.steps.groups import in_groups

POINTS = 20
"""Measurements along a run."""
MEASURED = 2**14
"""Bytes of the validation part that they are of, in windows evenly spread."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns.

    Args:
        steps: of a whole run; a shortened one has the same schedule over fewer. batch: windows of a step. rate: of AdamW at its
            highest. betas: its averages'. decay: of weights and of feedback that learns with them, but no biases and
            normalizations. warmup: the part of a run in which the rate rises from 0. end: the part of the rate that is left.

    >>> recipe = Recipe(rate=1.0)
    >>> [round(recipe.rate_at(part), 3) for part in (0.025, 0.05, 0.525, 1.0)]
    [0.5, 1.0, 0.55, 0.1]
    """

    steps: int = 2000
    batch: int = 32
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    decay: float = 1.0
    warmup: float = 0.05
    end: float = 0.1

    def rate_at(self, part: float) -> float:
        """The rate of the step with which this part of a run is over."""
        if part < self.warmup:
            return self.rate * part / self.warmup
        fallen = (1 + math.cos(math.pi * (part - self.warmup) / (1 - self.warmup))) / 2
        return self.rate * (self.end + (1 - self.end) * fallen)


class LanguageTraining:
    """The training of one network.

    Args:
        network: a name for text in `apical.networks`. rule: with its options. recipe: how. task: whose data, seed and precision
        they are. steps: the length of this run.
    """

    def __init__(self, network: str, rule: apical.Rule, recipe: Recipe, task: Task, steps: int) -> None:
        self.task, self.data, self.recipe, self.steps = task, task.data, recipe, steps
        (self.seed,) = task.seeds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(self.seed)
        self.model = build(network, shape=self.data.shape, classes=self.data.classes)
        self.learner = apical.attach(
            self.model,
            rule,
            example_input=zeros(2, self.data.shape, next(self.model.parameters())),
            generator=torch.Generator().manual_seed(self.seed + 10**6),
        )
        self.model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            in_groups(self.learner, weight_decay=0.0), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.decay
        )
        self.per_epoch = math.ceil(len(self.data.train) / recipe.batch)
        self._place, self._batches = -1, iter(())

    def course(self) -> dict[str, Curve]:
        """The validation loss in nats per byte, over millions of bytes."""
        a_step = self.recipe.batch * self.data.shape[0]
        return course(
            self.task,
            self.steps,
            learn=self.learn,
            measure=lambda: {"validation loss": [self.scores("validation", MEASURED)["loss"]]},
            at=spread(self.steps, POINTS),
            parts={"model": self.model, "optimizer": self.optimizer, "learner": self.learner},
            x=lambda step: step * a_step / 1e6,
        )

    def learn(self, step: int) -> None:
        """One step on a minibatch."""
        x, y = self._batch(step)
        self.model.train()
        cross_entropy(self.outputs(x), y).mean().backward()
        self.learner.adapt(x, y, self._losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at((step + 1) / self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [N, T, 256] for windows [N, T]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.task.precision == "bf16-mixed"):
            return self.model(x).float()

    @staticmethod
    def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.float(), targets)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, number = divmod(step, self.per_epoch)
        if step != self._place or not number:
            self._batches = self._from(epoch, number)
        self._place = step + 1
        return next(self._batches)

    def _from(self, epoch: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.data.train.batches(self.recipe.batch, self.seed, epoch, number, device=self.device)

    @torch.no_grad()
    def scores(self, role: str, most: int | None = None) -> Mapping[str, float]:
        """Loss and error over a held-out part, or at most so many bytes of it."""
        self.model.eval()
        split = self.data.splits[role]
        if most is not None:
            count = max(1, min(len(split), most // self.data.shape[0]))
            split = split.part(torch.arange(count) * len(split) // count)
        return _mean([(len(y), scores(cross_entropy, self.outputs(x), y)) for x, y in self._in_order(split)])

    def _in_order(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        return split.in_order(split.at_once, device=self.device)


def _mean(found: list[tuple[int, dict[str, Any]]]) -> dict[str, float]:
    """The mean of each score, weighted by windows."""
    whole = sum(count for count, _ in found)
    return {name: sum(count * one[name] for count, one in found) / whole for name in found[0][1]}
