"""The runs that come with the paper's released code: two fully connected sigmoid networks, four rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.losses import binary_cross_entropy, error_rate
from apical.networks.mlp import mlp
from apical.papers.akrout2019.settings import CONDITIONS, Condition, Setting, settings
from apical.papers.claims import Statement, judge
from apical.papers.course import course
from apical.papers.experiment import Experiment, Task, given
from apical.papers.outcome import Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

PROBES = 1000
"""Training images on which loss and angles are measured."""
LATE = 0.9
"""From this part of training on, errors are averaged before they are compared."""


@dataclass(frozen=True)
class Printed:
    """Last values in the release's results.json: test error in percent, and angles in degrees.

    Args:
        error: of the test set. delta: of the hidden layer, FA's to BP's. matrix: of the output's weights and their feedback.
    """

    error: float
    delta: float | None = None
    matrix: float | None = None


def statements(within: float) -> list[Statement]:
    """What the paper says of every rule: its angles, and how near its test error comes to BP's, in points `within`."""
    return [one for condition in CONDITIONS[1:] for one in (_angles(condition), _error(condition, within))]


def _angles(condition: Condition) -> Statement:
    key = f"angles, {condition}"
    if condition.rule == "fa":
        text = "FA: the hidden delta angle and the matrix angle stay above 10°"
        return Statement(text, (key,), lambda ends: min(ends) > 10, _degrees_of_both)
    text = f"{condition.title}: the hidden delta angle and the matrix angle end under 10°"
    return Statement(text, (key,), lambda ends: max(ends) < 10, _degrees_of_both)


def _degrees_of_both(ends: Sequence[float]) -> str:
    return f"{ends[0]:.1f}° and {ends[1]:.1f}° at the end"


def _error(condition: Condition, within: float) -> Statement:
    needs = (f"late error, {condition}", "late error, bp")
    if condition.rule == "fa":
        text = f"FA stays more than {within:g} points above BP's test error"
        return Statement(text, needs, lambda own, bp: own - bp > within, _late_errors)
    text = f"{condition.title}: the test error reaches BP's within {within:g} points"
    return Statement(text, needs, lambda own, bp: own - bp < within, _late_errors)


def _late_errors(own: float, bp: float) -> str:
    return f"{own:.2f}% against {bp:.2f}%, mean over the last tenth of training"


def measured(records: Mapping[str, Record]) -> dict[str, Any]:
    """Values that the statements speak of: every condition's test error late in training, and its two angles at the end."""
    values: dict[str, Any] = {}
    for name, record in records.items():
        values[f"late error, {name}"] = _late(record)
        if name != "bp":
            angles = (record.curves[f"{what} angle"].values[:, -1] for what in ("delta", "matrix"))
            values[f"angles, {name}"] = [float(found.mean()) for found in angles]
    return values


@dataclass(frozen=True, kw_only=True)
class Released(Experiment):
    """A network with one hidden layer, every rule from the same initial weights, batches in the data's order.

    Args:
        hidden: units. printed: condition -> the release's numbers. within: points of test error that count as reaching BP's.
        epochs: over the data. batch: samples of a minibatch.
    """

    hidden: int
    printed: Mapping[str, Printed]
    within: float
    epochs: int = 400
    batch: int = 128

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the rules as released, then as the paper has them."""
        return tuple(map(str, CONDITIONS))

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The number of minibatches; a last one of an epoch that is not full is left out."""
        return {"steps": self.epochs * self._per_epoch(given(data))}

    def _per_epoch(self, data: ImageData) -> int:
        return max(1, len(data.train) // self.batch)

    def run(self, task: Task) -> Record:
        """The record of one seed: errors, losses and angles along the training."""
        (seed,) = task.seeds
        setting = settings(self.batch)[task.condition]
        steps, per_epoch = task.lengths["steps"], self._per_epoch(task.data)
        train, test = task.data.train, task.data.test
        probes = train.batch(torch.arange(min(PROBES, len(train))))
        model = self.network(task.data, seed)
        learner = apical.attach(
            model, setting.rule, example_input=probes[0][:1], generator=torch.Generator().manual_seed(seed + 10**6)
        )
        optimizer = self._optimizer(learner, setting)
        place = torch.arange(self.batch)

        def learn(step: int) -> None:
            x, y = train.batch(
                place + step % per_epoch * self.batch if len(train) > self.batch else place[: len(train)]
            )
            if step == 0:
                for _ in range(setting.mirrored * per_epoch):
                    learner.adapt(x, y, binary_cross_entropy)
            binary_cross_entropy(model(x), y).mean().backward()
            optimizer.step()
            learner.adapt(x, y, binary_cross_entropy)

        def measure() -> dict[str, list[float]]:
            found = {"test error": error_rate(*_outputs(model, test)), "loss": _loss(model, *probes)}
            if task.condition != "bp":
                angles = apical.alignment(learner, *probes, binary_cross_entropy)
                first = apical.alignment(learner, probes[0][:1], probes[1][:1], binary_cross_entropy)
                lower, upper = learner.synapses
                found["delta angle"] = _degrees(angles[lower].delta_angle)
                found["delta angle, first image"] = _degrees(first[lower].delta_angle)
                found["matrix angle"] = _degrees(angles[upper].matrix_angle)
            return {name: [value] for name, value in found.items()}

        # Angles fall within the first epochs.
        fractions = [*range(20), *range(20, self.epochs, 4)]
        return Record(
            curves=course(
                task,
                steps,
                learn=learn,
                measure=measure,
                at=[round(epoch * steps / self.epochs) for epoch in fractions],
                parts={"model": model, "optimizer": optimizer, "learner": learner},
                x=lambda step: step / per_epoch,
            )
        )

    def network(self, data: ImageData, seed: int) -> nn.Sequential:
        """The network that a seed starts from: weights and biases normal, with the release's standard deviation."""
        generator = torch.Generator().manual_seed(seed)
        model = mlp([data.features, self.hidden, data.classes], "sigmoid")
        for layer in model:
            if isinstance(layer, nn.Linear):
                for parameter in (layer.weight, layer.bias):
                    sd = (layer.in_features + layer.out_features) ** -0.5
                    nn.init.normal_(parameter, 0.0, sd, generator=generator)
        return model

    def _optimizer(self, learner: apical.Learner, setting: Setting) -> apical.LocalSGD:
        biases = [synapse.bias for synapse in learner.synapses.values()]
        others = [p for p in learner.model.parameters() if not any(p is bias for bias in biases)]
        slow = {"params": biases, "lr": setting.rate / (self.batch if setting.slow_biases else 1)}
        return apical.LocalSGD(learner, lr=setting.rate, weight_decay=setting.decay, params=[{"params": others}, slow])

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The release's four figures, its final numbers, and the paper's statements."""
        curves = {name: record.curves for name, record in records.items()}
        panels = [
            _panel("loss", curves, y="loss, first training images", log_y=True),
            _panel("test error", curves, y="test error (%)", log_y=True),
            _panel("delta angle", curves, y="hidden layer's delta angle (°)", low=0),
            _panel("matrix angle", curves, y="angle of W and B, output layer (°)", low=0),
        ]
        claims = judge(statements(self.within), measured(records))
        return Outcome(rows=self._rows(curves), claims=claims, panels=[panel for panel in panels if panel.lines])

    def _rows(self, curves: Mapping[str, Mapping[str, Curve]]) -> list[Row]:
        rows = []
        for name, printed in self.printed.items():
            for what, label, value, unit in (
                ("test error", "test error", printed.error, "%"),
                ("delta angle, first image", "hidden delta angle, first training image", printed.delta, "°"),
                ("matrix angle", "angle of output weights and their feedback", printed.matrix, "°"),
            ):
                if name in curves and value is not None:
                    rows.append(Row(f"{name}: {label}", curves[name][what].last, Published(value, tag="C"), unit))
        for name, own in curves.items():
            if name not in self.printed:
                rows.append(Row(f"{name}: test error", own["test error"].last, unit="%"))
                if "delta angle" in own:
                    rows.append(Row(f"{name}: hidden delta angle", own["delta angle"].last, unit="°"))
        return rows


def _panel(measure: str, curves: Mapping[str, Mapping[str, Curve]], y: str, **axes: Any) -> Panel:
    lines = [Line.of(name, own[measure]) for name, own in curves.items() if measure in own]
    return Panel(title=measure, x="epochs", y=y, lines=lines, **axes)


@torch.no_grad()
def _outputs(model: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
    parts = [model(split.batch(index)[0]) for index in torch.arange(len(split)).split(1000)]
    return torch.cat(parts), split.labels


@torch.no_grad()
def _loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(binary_cross_entropy(model(x), y).mean())


def _degrees(angle: float | None) -> float:
    return math.nan if angle is None else angle


def _late(record: Record) -> float:
    curve = record.curves["test error"]
    late = [i for i, x in enumerate(curve.x) if x >= LATE * curve.x[-1]]
    return float(curve.values[:, late].mean())


READINGS = (
    "Published numbers are those that the release's results.json end with (one run); the paper itself does not show these runs.",
    "Biases learn at the rate divided by the batch size once more, as in the release; not in the two conditions with the "
    "paper's settings.",
    "The release mirrors the first layer too, which no signal uses; it is left out here.",
    "'kp, paper': decay 1e-4 as L2 of the optimizer (eqs 16-17 write it without the rate), rate as in the release.",
    "'wm, paper': Gaussian noise of sd 1, rate 0.1, decay 0.5 times the rate, batch means removed, averaged over "
    "2048 rows, after two epochs of mirroring alone; BP's rate for the weights, because none is printed.",
    "The loss shown is that of the first 1000 training images after each epoch; the release shows its mean over the epoch.",
    "The release measures the delta angle on the first training image, flattened; so does the row. Panels and claims take the "
    "mean over the first 1000.",
)

MNIST = Released(
    name="akrout2019/code-mnist",
    title="Released runs on MNIST, 784-500-10",
    source="Released code, experiments/mnist and figures/mnist",
    length="400 epochs",
    seeds=1,
    minutes=75,
    data="ylecun/mnist",
    readings=READINGS,
    together=False,
    hidden=500,
    printed={
        "bp": Printed(1.50),
        "fa": Printed(2.20, 34.909, 40.027),
        "kp": Printed(1.55, 3.148, 3.619),
        "wm": Printed(1.51, 3.213, 3.788),
    },
    within=0.3,
)

CIFAR10 = Released(
    name="akrout2019/code-cifar10",
    title="Released runs on CIFAR-10, 3072-1000-10",
    source="Released code, experiments/cifar10 and figures/cifar10",
    length="400 epochs",
    seeds=1,
    minutes=330,
    data="uoft-cs/cifar10",
    readings=(
        *READINGS,
        "'Within 2 points': these runs go up and down late in training, the published ones too (BP: 50.4% to 62.9% test error "
        "within the last 22 epochs).",
        "Images come in the order of the data set as it is loaded, which need not be the order of the release's copy.",
    ),
    together=False,
    hidden=1000,
    printed={
        "bp": Printed(51.82),
        "fa": Printed(57.04, 48.828, 46.489),
        "kp": Printed(52.43, 1.712, 1.956),
        "wm": Printed(53.80, 7.747, 9.663),
    },
    within=2.0,
)
