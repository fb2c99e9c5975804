"""Figure 3a, b and Supplementary Figure 5: one hidden layer of sigmoid units on MNIST."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

import apical
from apical import losses
from apical.data import ImageData, Split
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

_OUTPUT = "3"


@dataclass(frozen=True, kw_only=True)
class HandwrittenDigits(Experiment):
    """A 784-1000-10 network of logistic units with biases, squared error, constant rate and weight decay.

    Args:
        rules: compared. epochs: over all training images. hidden: units.
        rate: eta, per example. decay: alpha, W <- W - alpha W per example. batch: examples per update.
        weights: w, W_0 and W ~ U[-w, w]. feedback: beta, B ~ U[-beta, beta].
        connected: fraction of the elements of W and B, between hidden layer and output, that exist.
        panels: which of the figure's are shown. published: rule -> test error in percent.
    """

    rules: tuple[str, ...] = ("shallow", "bp", "fa")
    epochs: int = 25  # [R]
    hidden: int = 1000  # [T]
    rate: float = 1e-3
    decay: float = 1e-6  # [R] W - alpha W, not W - eta alpha W
    batch: int = 50  # [R]
    weights: float = 0.1
    feedback: float = 1.0
    connected: float = 1.0
    panels: str = "ab"
    published: Mapping[str, Published] = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The rules."""
        return self.rules

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Updates."""
        assert data is not None
        return {"updates": self.epochs * self._per_epoch(data.train)}

    def _per_epoch(self, split: Split) -> int:
        return max(1, len(split) // self.batch)

    def run(self, task: Task) -> Record:
        """One seed."""
        (seed,) = task.seeds
        train, updates = task.data.train, task.lengths["updates"]
        model, learner = self._learner(task.condition, seed, task.data)
        # Mean over the batch times its size: a sum over examples, as that many updates online.
        optimizer = apical.LocalSGD(learner, lr=self.rate * self.batch, weight_decay=self.decay / self.rate)
        test = task.data.test.batch(torch.arange(len(task.data.test)))
        some = test[0][:256], test[1][:256]

        def learn(step: int) -> None:
            x, y = train.batch(shuffled(len(train), self.batch, step, seed))
            losses.squared_error(model(x), y).mean().backward()
            optimizer.step()

        @torch.no_grad()
        def measure() -> dict[str, list[float]]:
            found = {"test error": [losses.error_rate(model(test[0]), test[1])]}
            if task.condition == "fa":
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
        return Record(curves=curves)

    def _learner(self, rule: str | apical.Rule, seed: int, data: ImageData) -> tuple[nn.Module, apical.Learner]:
        """The network with weights of this seed, attached."""
        # Feedback has a generator of its own, so that all rules start from the same weights.
        draw, back = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 10**6)
        first, last = nn.Linear(data.features, self.hidden), nn.Linear(self.hidden, data.classes)
        for layer in (first, last):
            nn.init.uniform_(layer.weight, -self.weights, self.weights, generator=draw)
            nn.init.zeros_(layer.bias)  # [R]
        model = nn.Sequential(nn.Flatten(), first, nn.Sigmoid(), last, nn.Sigmoid())
        if rule == "fa":
            rule = apical.rule("fa", init=partial(nn.init.uniform_, a=-self.feedback, b=self.feedback))
        thinned = {_OUTPUT: self.connected} if self.connected < 1 else None  # [R] W_0 stays whole
        return model, apical.attach(model, rule, generator=back, connectivity=thinned)

    def _angle(self, learner: apical.Learner, x: Tensor, y: Tensor) -> float:
        """Of e B to e W, with e the error at the output units' inputs."""  # [R]
        found = apical.alignment(learner, x, y, losses.squared_error)[_OUTPUT].layer_angle
        return math.nan if found is None else found

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """Test errors, and the angle."""
        errors = {rule: record.curves["test error"] for rule, record in records.items()}
        angles = [record.curves["angle"] for record in records.values() if "angle" in record.curves]
        rows, claims, panels = [], [], []
        if "a" in self.panels:
            rows += [
                Row(f"test error, {rule}", curve.last, self.published.get(rule), "%") for rule, curve in errors.items()
            ]
            claims += _compared(errors)
            lines = [Line.of(rule, curve) for rule, curve in errors.items()]
            panels.append(Panel(title="a", x="examples", y="test error (%)", lines=lines, log_y=True))
        if "b" in self.panels and angles:
            rows.append(Row("angle of FA's signal to BP's at the end", angles[0].last, unit="°"))
            claims.append(_aligned(angles[0]))
            lines = [Line.of("fa", angles[0])]
            panels.append(
                Panel(title="b", x="examples", y="angle of FA to BP (°)", lines=lines, marks=(90,), low=0, high=100)
            )
        return Outcome(rows=rows, claims=claims, panels=panels)


def _compared(errors: Mapping[str, Curve]) -> list[Claim]:
    last = {rule: Row(rule, curve.last) for rule, curve in errors.items()}
    claims = []
    if {"bp", "fa"} <= errors.keys():
        fa, bp = last["fa"], last["bp"]
        noise = math.hypot(fa.sem or 0, bp.sem or 0)
        claims.append(
            Claim(
                "FA ends at BP's test error or below",
                fa.mean <= bp.mean + 2 * noise,
                f"{fa.mean:.2f} % against {bp.mean:.2f} %",
            )
        )
        needed = {rule: _examples_until(errors[rule], 5) for rule in ("fa", "bp")}
        claims.append(
            Claim(
                "FA learns just as quickly as BP",
                math.isfinite(needed["fa"]) and needed["fa"] <= 1.1 * needed["bp"],
                f"5 % after {needed['fa']:.3g} examples against {needed['bp']:.3g}",
            )
        )
    if {"shallow", "fa"} <= errors.keys():
        fa, shallow = last["fa"].mean, last["shallow"].mean
        claims.append(
            Claim("FA teaches the hidden layer", fa < shallow, f"{fa:.2f} % against {shallow:.2f} % with W_0 fixed")
        )
    return claims


def _examples_until(curve: Curve, percent: float) -> float:
    """Of training, before the mean test error falls to this; between measurements along the line that joins them."""
    x, y = np.asarray(curve.x), curve.values.mean(0)
    below = np.flatnonzero(y <= percent)
    if not len(below):
        return math.inf
    i = below[0]
    return float(x[i]) if i == 0 else float(np.interp(percent, [y[i], y[i - 1]], [x[i], x[i - 1]]))


def _aligned(curve: Curve) -> Claim:
    x, mean = np.asarray(curve.x), curve.values.mean(0)
    first, last = mean[0], mean[-1]
    later = mean[x >= x[-1] / 4]
    holds = last < first - 10 and bool(np.ptp(later) < 10)
    evidence = f"{first:.0f}° before learning, {later[0]:.0f}° after a quarter of it, {last:.0f}° at the end"
    return Claim("the angle of FA's signal to BP's falls quickly and stays", bool(holds), evidence)


def shuffled(n: int, batch: int, step: int, seed: int) -> Tensor:
    """Indices of the batch at a step: every epoch in an order of its own, known from the seed and the epoch alone."""
    epoch, at = divmod(step, max(1, n // batch))
    return _order(n, epoch, seed)[at * batch : (at + 1) * batch]


@lru_cache(maxsize=1)
def _order(n: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 10**6 + epoch))


_READINGS = ("Minibatches of 50 at 50 times the rate stand for updates after every example.",)

FIG3A = HandwrittenDigits(
    name="lillicrap2016/fig3a",
    title="One hidden layer on MNIST, taught by random feedback",
    source="Figure 3a; Methods, MNIST",
    length="25 epochs",
    seeds=5,
    minutes=60,
    data="ylecun/mnist",
    together=False,
    readings=_READINGS,
    panels="ab",
    published={"bp": Published(2.4), "fa": Published(2.1), "shallow": Published(7.2, tag="T")},
)

FIG3B = replace(
    FIG3A,
    name="lillicrap2016/fig3b",
    title="The angle of random feedback's signal to backpropagation's on MNIST",
    source="Figure 3b",
    rules=("fa",),
    panels="b",
    published={},
)

FIG3_SPARSE = replace(
    FIG3A,
    name="lillicrap2016/fig3-sparse",
    title="Half of the connections between hidden layer and output, forward and back, on MNIST",
    source="Supplementary Figure 5; reference in the main text",
    rules=("fa",),
    connected=0.5,
    published={"fa": Published(2.4)},
)
