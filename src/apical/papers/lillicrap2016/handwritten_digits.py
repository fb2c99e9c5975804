"""MNIST learned by one hidden layer of sigmoid units: the training that figure 3 and Supplementary Figure 5 look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical import losses
from apical.data import ImageData, Split
from apical.papers.claims import Statement, judge
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task, given
from apical.papers.outcome import Line, Outcome, Panel, Row
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
        start = first_weights(model).clone()
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
        return Record(curves=curves, arrays=self.kept(first_weights(model) - start, task.data))

    def kept(self, change: Tensor, data: ImageData) -> dict[str, Any]:
        """What else a record keeps, of the change of the hidden units' weights [hidden, features]."""
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


def first_weights(model: nn.Module) -> Tensor:
    """The weights W_0 [hidden, features] of a network."""
    return next(model.parameters()).detach()


def shuffled(n: int, batch: int, step: int, seed: int) -> Tensor:
    """The indices of the batch at a step: every epoch in an order of its own, known from the seed and the epoch alone."""
    epoch, at = divmod(step, max(1, n // batch))
    return _order(n, epoch, seed)[at * batch : (at + 1) * batch]


@lru_cache(maxsize=1)
def _order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 10**6 + epoch))


FA, BP = Contender("fa"), Contender("bp", 10)
BOX, CONSTANT = Contender("fa", slope="box"), Contender("fa", slope="constant")
UNITS, SHOWN = 100, 4
"""Hidden units whose detectors are compared, and a side of the square of those that are shown."""
SAID = (
    Statement(
        "A rough approximation of h' works nearly as well (here a box: test error at most 0.5 % above that by h')",
        (str(FA), str(BOX)),
        lambda fa, box: box <= fa + 0.5,
        lambda fa, box: f"{fa:.2f} % by h', {box:.2f} % by a box",
    ),
    Statement(
        "h' has to tell units that are saturated from others: by a constant the test error is more than 0.5 % above that by h'",
        (str(FA), str(CONSTANT)),
        lambda fa, constant: constant > fa + 0.5,
        lambda fa, constant: f"{fa:.2f} % by h', {constant:.2f} % by a constant",
        kind="ours",
    ),
    Statement(
        "FA develops feature detectors similar to BP's (here: two thirds of its units or more are closer to one of BP's than to "
        "any of BP's mirrored left to right)",
        ("closest", "mirrored"),
        lambda closest, mirrored: np.mean(closest > mirrored) >= 2 / 3,
        lambda closest, mirrored: (
            f"{100 * np.mean(closest > mirrored):.0f} % of {len(closest)} units; the median of their best correlations is "
            f"{np.median(closest):.2f}, mirrored {np.median(mirrored):.2f}"
        ),
    ),
)
"""About the last test errors [%], by contender, and about each FA unit's best correlation with BP's units."""


def best_correlations(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Each detector's largest correlation, of either sign, with any of some others: [n, pixels], [m, pixels] -> [n]."""
    both = [one - one.mean(1, keepdims=True) for one in (ours, theirs)]
    units = [one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-30) for one in both]
    return np.abs(units[0] @ units[1].T).max(1)


@dataclass(frozen=True, kw_only=True)
class InWords(HandwrittenDigits):
    """What the text says of this network beside its figure: rough derivatives, and what its units detect."""

    @override
    def kept(self, change: Tensor, data: ImageData) -> dict[str, Any]:
        _, height, width = data.shape
        found = change[:UNITS].view(-1, data.shape[0], height, width).mean(1)
        return {"detectors": [[[float(f"{v:.4g}") for v in row] for row in one] for one in found.tolist()]}

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        errors = {name: record.curves["test error"] for name, record in records.items()}
        values: dict[str, Any] = {name: float(np.mean(curve.last)) for name, curve in errors.items()}
        lines = [Line.of(name, curve) for name, curve in errors.items()]
        panels = [Panel(title="test error", x="examples", y="test error (%)", lines=lines, log_y=True)]
        found = {name: np.asarray(records[name].arrays["detectors"]) for name in map(str, (FA, BP)) if name in records}
        if len(found) == 2:
            fa, bp = found.values()
            flat = fa.reshape(len(fa), -1)
            values["closest"] = best_correlations(flat, bp.reshape(len(bp), -1))
            values["mirrored"] = best_correlations(flat, bp[:, :, ::-1].reshape(len(bp), -1))
        panels += [Panel(title=f"detectors, {name}", kind="image", image=_mosaic(one)) for name, one in found.items()]
        rows = [Row(f"test error, {name}", curve.last, unit="%") for name, curve in errors.items()]
        return Outcome(rows=rows, claims=judge(SAID, values), panels=panels, columns=3)


def _mosaic(detectors: np.ndarray) -> list[list[float]]:
    """Some detectors in a square, each within [-1, 1]."""
    scaled = detectors / np.maximum(np.abs(detectors).max((1, 2), keepdims=True), 1e-30)
    rows = [np.concatenate(list(scaled[i * SHOWN : (i + 1) * SHOWN]), axis=1) for i in range(SHOWN)]
    return np.concatenate(rows).tolist()
