"""MNIST learned by one hidden layer of sigmoid units: the training that figure 3 and Supplementary Figure 5 look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical import losses
from apical.data import ImageData, Split
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task, given
from apical.papers.record import Record

OUTPUT = "3"
"""The name of the layer between hidden and output units."""


Slope = Literal["own", "box", "constant"]
"""The derivative h' of logistic units as it is; as 1/4 where the potential is within 2 of 0, else 0; as 1/4 everywhere."""


class Units(nn.Module):
    """Logistic units, x [..., units] -> [..., units], whose derivative may be replaced by a rough one."""

    def __init__(self, slope: Slope) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """The outputs; their gradient is that of the slope."""
        h = torch.sigmoid(x)
        if self.slope == "own":
            return h
        line = (x.clamp(-2, 2) if self.slope == "box" else x) / 4
        return h.detach() + (line - line.detach())


@dataclass(frozen=True)
class Contender:
    """A condition: rule, how many times the printed rate it learns by, and w where that is another than the experiment's.

    Args:
        rule, factor, weights: these. slope: what takes the place of the hidden units' derivative, if anything does; see `Units`.

    >>> str(Contender("bp", 10, weights=0.3))
    'bp, 10 eta, w = 0.3'
    """

    rule: str
    factor: float = 1.0
    weights: float | None = None
    slope: Slope = "own"

    def __str__(self) -> str:
        return self.learner + self.where

    @property
    def learner(self) -> str:
        """The name without w."""
        slope = "" if self.slope == "own" else f", {self.slope} slope"
        return self.rule + ("" if self.factor == 1 else f", {self.factor:g} eta") + slope

    @property
    def where(self) -> str:
        """The end of the name, which says w; empty where that is the experiment's."""
        return "" if self.weights is None else f", w = {self.weights:g}"


@dataclass(frozen=True, kw_only=True)
class HandwrittenDigits(Experiment):
    """A 784-1000-10 network of logistic units with biases, squared error, constant rate and weight decay.

    Args:
        contenders: what is compared. epochs: over all training images. hidden: units. rate: eta, per example.
        batch: examples per update. decay: alpha. shrink: "rate": W <- W - eta alpha W per example; "example": W <- W - alpha W.
        weights: w, W_0 and W ~ U[-w, w]. feedback: beta, B ~ U[-beta, beta].
        connected: fraction of the elements of W and B, between hidden layer and output, that exist.
    """

    contenders: tuple[Contender, ...]
    epochs: int = 60  # [R]
    hidden: int = 1000  # [T]
    rate: float = 1e-3
    batch: int = 20  # [R]
    decay: float = 1e-6
    shrink: Literal["rate", "example"] = "rate"  # [R]
    weights: float = 0.2  # [R]
    feedback: float = 30.0  # [R]
    connected: float = 1.0

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(map(str, self.contenders))

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"updates": self.epochs * self._per_epoch(given(data).train)}

    def _per_epoch(self, split: Split) -> int:
        return max(1, len(split) // self.batch)

    @override
    def run(self, task: Task) -> Record:
        (seed,) = task.seeds
        train, updates = task.data.train, task.lengths["updates"]
        contender = self.contenders[self.conditions.index(task.condition)]
        rate = self.rate * contender.factor
        width = self.weights if contender.weights is None else contender.weights
        model, learner = self.learner(contender.rule, seed, task.data, width, contender.slope)
        # Mean over the batch times its size: a sum over examples, as that many updates online.
        decay = self.decay if self.shrink == "rate" else self.decay / rate
        optimizer = apical.LocalSGD(learner, lr=rate * self.batch, weight_decay=decay)
        test = task.data.test.batch(torch.arange(len(task.data.test)))
        some = test[0][:256], test[1][:256]

        def learn(step: int) -> None:
            x, y = train.batch(shuffled(len(train), self.batch, step, seed))
            losses.squared_error(model(x), y).mean().backward()
            optimizer.step()

        @torch.no_grad()
        def measure() -> dict[str, list[float]]:
            found = {"test error": [losses.error_rate(model(test[0]), test[1])]}
            if contender.rule == "fa":
                found["angle"] = [self._angle(learner, *some)]
            return found

        curves = course(
            task,
            updates,
            learn=learn,
            measure=measure,
            at={*spread(updates, 25), *spread(updates, 12, logarithmic=True)},
            parts={"model": model, "optimizer": optimizer},
            x=lambda step: step * self.batch,
        )
        return Record(curves=curves, arrays=self.kept(model))

    def kept(self, model: nn.Module) -> dict[str, Any]:
        """What else a record keeps of a network at the end."""
        return {}

    def learner(
        self, rule: str | apical.Rule, seed: int, data: ImageData, width: float, slope: Slope = "own"
    ) -> tuple[nn.Module, apical.Learner]:
        """The network with weights and feedback of this seed, and its learner."""
        # Feedback has a generator of its own, so that all rules start from the same weights.
        draw, back = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 10**6)
        first, last = nn.Linear(data.features, self.hidden), nn.Linear(self.hidden, data.classes)
        for layer in (first, last):
            nn.init.uniform_(layer.weight, -width, width, generator=draw)
            nn.init.zeros_(layer.bias)  # [R]
        model = nn.Sequential(nn.Flatten(), first, Units(slope), last, nn.Sigmoid())
        if rule == "fa":
            rule = apical.rule("fa", init=partial(nn.init.uniform_, a=-self.feedback, b=self.feedback))
        thinned = {OUTPUT: self.connected} if self.connected < 1 else None  # [R] W_0 stays whole
        return model, apical.attach(model, rule, generator=back, connectivity=thinned)

    def _angle(self, learner: apical.Learner, x: Tensor, y: Tensor) -> float:
        """The angle of e B to e W, with e the error at the output units' inputs."""  # [R]
        found = apical.alignment(learner, x, y, losses.squared_error)[OUTPUT].layer_angle
        return math.nan if found is None else found


def shuffled(n: int, batch: int, step: int, seed: int) -> Tensor:
    """The indices of the batch at a step: every epoch in an order of its own, known from the seed and the epoch alone."""
    epoch, at = divmod(step, max(1, n // batch))
    return _order(n, epoch, seed)[at * batch : (at + 1) * batch]


@lru_cache(maxsize=1)
def _order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 10**6 + epoch))
