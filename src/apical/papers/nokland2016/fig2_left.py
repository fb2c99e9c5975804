"""Figure 2, left: a first layer that was frozen learns, by backpropagation or by direct feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

import apical
from apical.data import ImageData
from apical.papers.experiment import Experiment, Task
from apical.papers.nokland2016.training import Net, Training, per_epoch
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

FIRST, SECOND = "0", "2"
"""Names of the first two layers; the signal for the first enters at the second's input."""
GONE = 0.1
"""Percent of training error that counts as none."""
LAST = 5
"""Epochs over which a noisy error is averaged before it is judged."""


@dataclass(frozen=True, kw_only=True)
class Unfreezing(Experiment):
    """All but the first layer learn by BP; then the first learns as well, by BP or by DFA."""

    net: Net
    rate: float = 1e-3  # [R]
    frozen_epochs: int = 50
    epochs: int = 100  # [R] the paper: about 50 until the error is gone

    @property
    def conditions(self) -> tuple[str, ...]:
        """How the first layer learns."""
        return ("bp", "dfa")

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Minibatches, with the first layer frozen and with all learning."""
        assert data is not None
        return {"frozen": self.frozen_epochs * per_epoch(data), "unfrozen": self.epochs * per_epoch(data)}

    def run(self, task: Task) -> Record:
        """All seeds at once."""
        copies = self._networks(task)
        training = Training(copies, task.data, task.seeds, rate=self.rate, stops=False)
        frozen, quarter = task.lengths["frozen"], max(training.per_epoch // 4, 1)
        first = copies.model.get_submodule(FIRST).requires_grad_(False)
        before = training.course(task, frozen, name="frozen", every=quarter)
        first.requires_grad_(True)
        after = training.course(task, task.lengths["unfrozen"], name="unfrozen", first=frozen, every=quarter)
        curves = {
            name: Curve(
                [*before[name].x, *after[name].x],
                [[*a, *b] for a, b in zip(before[name].y, after[name].y, strict=True)],
            )
            for name in before
        }
        return Record(
            curves=curves,
            numbers={
                "frozen": before["train error"].last,
                "test error": after["test error"].last,
            },
            arrays={"unfrozen at": before["train error"].x[-1]},
        )

    def _networks(self, task: Task) -> apical.Replicas:
        rule = {"": "bp", SECOND: task.condition} if task.condition == "dfa" else "bp"
        made = []
        for seed in task.seeds:
            generator = torch.Generator().manual_seed(seed)
            net = self.net.build(task.data.features, task.data.classes, generator, zero=False)
            apical.attach(net, rule, example_input=torch.zeros(2, task.data.features), generator=generator)
            made.append(net)
        return apical.replicate(made, example_input=torch.zeros(2, task.data.features))

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The errors by epoch, and what the paper says of them."""
        rows, claims, risen = [], [], {}
        for rule, record in records.items():
            curve, let_go = record.curves["train error"], record.arrays["unfrozen at"]
            frozen = record.numbers["frozen"]
            epochs = curve.x[-1] - let_go
            half, end = (_mean_error(curve, x - LAST, x) for x in (let_go + epochs / 2, curve.x[-1]))
            first = _mean_error(curve, let_go, let_go + 1)
            rows += [
                Row(f"{rule}: train error, first layer frozen", frozen, Published(5.0), "%"),
                Row(f"{rule}: train error, {epochs / 2:g} epochs after", half, Published(0.0), "%", within=GONE),
                Row(f"{rule}: train error at the end", end, Published(0.0), "%", within=GONE),
                Row(f"{rule}: test error at the end", record.numbers["test error"], unit="%"),
            ]
            claims.append(
                Claim(
                    f"Unfrozen, {rule}: the training error goes to 0 % (here: below {GONE:g} % over the last {LAST} of "
                    f"{epochs / 2:g} epochs)",
                    fmean(half) < GONE,
                    f"from {fmean(frozen):.2f} % with the first layer frozen to {fmean(half):.3f} % after "
                    f"{epochs / 2:g} epochs and {fmean(end):.3f} % after {epochs:g}",
                )
            )
            risen[rule] = fmean(first), fmean(frozen)
        if "dfa" in risen:
            rise = {rule: first - frozen for rule, (first, frozen) in risen.items()}
            told = ", ".join(f"{rule} from {frozen:.2f} % to {first:.2f} %" for rule, (first, frozen) in risen.items())
            claims.append(
                Claim(
                    "Unfrozen, dfa: the training error first rises (here: in the first epoch's mean, and further than under bp)",
                    rise["dfa"] > max(0, rise.get("bp", 0)),
                    told,
                )
            )
        if records:
            frozen = fmean(value for record in records.values() for value in record.numbers["frozen"])
            claims.append(
                Claim(
                    "With a frozen random first layer the training error is about 5 % (here: 3 to 7 %)",
                    3 <= frozen <= 7,
                    f"{frozen:.2f} %",
                )
            )
        panel = Panel(
            title="left",
            x="epoch",
            y="training error [%]",
            lines=[Line.of(rule, record.curves["train error"]) for rule, record in records.items()],
            low=0,
        )
        return Outcome(rows=rows, claims=claims, panels=[panel], columns=1)


def _mean_error(curve: Curve, after: float, to: float) -> list[float]:
    """Each seed's mean over measurements in (after, to]; over the last one where a short run has none there."""
    x = np.asarray(curve.x)
    there = (x > after) & (x <= to)
    return curve.values[:, there if there.any() else [-1]].mean(1).tolist()


FIG2_LEFT = Unfreezing(
    name="nokland2016/fig2-left",
    title="A frozen first layer is let go, 3x50 tanh on MNIST",
    source="Figure 2, left",
    length="50 epochs frozen, 100 unfrozen",
    seeds=5,
    minutes=12,
    data="ylecun/mnist",
    net=Net(3, 50),
    readings=(
        "All layers start at U(±1/sqrt(fan in)), the frozen one included.",
        "With DFA only the first layer hears the error directly; all others keep backpropagation's.",
        "The mean square of RMSprop starts at zero for the first layer when it is let go, which makes its first steps large; "
        "whether it does so in the paper is not known.",
        "The rate is not printed. With 1e-4, the rate of the other MNIST networks, the training error stays at 15.8 % after 30 "
        "frozen epochs (one seed); with 1e-3 it comes to 7.4 %, on its way to the paper's 5 % after 50, so 1e-3 is taken.",
        "Errors are those of the minibatches as they are learned from, over a quarter of an epoch each.",
    ),
)
