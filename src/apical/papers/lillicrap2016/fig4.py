"""Figure 4: MNIST shown to a spiking network that never stops integrating and learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from apical import measures
from apical.data import ImageData, Split
from apical.papers.claims import Statement, judge
from apical.papers.course import course, spread
from apical.papers.experiment import Experiment, Task, given
from apical.papers.lillicrap2016.handwritten_digits import shuffled
from apical.papers.lillicrap2016.spiking import Dynamics, SpikingNetwork
from apical.papers.outcome import Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

TOTAL, LAST = "test error", "test error by the last step's spikes"
SHALLOW = 7.2
"""Percent of test error that a network of figure 3 reaches whose output layer alone learns [T]."""

LEARNING = (
    Statement(
        "a spiking network that integrates continuously learns by random feedback (here: test error below the "
        f"{SHALLOW:g} % that shallow learning reaches in the network without spikes)",
        (TOTAL,),
        lambda error: error.mean[-1] < SHALLOW,
        lambda error: f"test error {error.mean[0]:.1f} % before, {error.mean[-1]:.2f} % after",
    ),
)
"""About the test error over training."""


def angle_of(layer: int) -> str:
    """The name of the angle between a layer's weights and feedback."""
    return f"angle {layer}"


@dataclass(frozen=True, kw_only=True)
class SpikingDigits(Experiment):
    """Three hidden layers of stochastic binary units and a group of output units per class, images shown for some steps each.

    Args:
        dynamics: condition -> dynamics; the first is trained for `epochs`, the others, alternative readings, for one.
        hidden: units per hidden layer. group: output units per class. presented: steps per image.
        streams: images shown side by side, each of which adds its whole update in every step. tested: so many when testing.
        rate, decay: eta and gamma, per image and step. weights, feedback: half-widths of the uniform distributions.
        brightest: largest probability with which an input unit spikes.
    """

    dynamics: Mapping[str, Dynamics]
    epochs: int = 200  # [R]
    hidden: tuple[int, ...] = (1500, 1500, 1500)
    group: int = 100
    presented: int = 5
    streams: int = 100  # [R]
    tested: int = 500
    rate: float = 1e-3
    decay: float = 1e-8
    weights: float = 0.05
    feedback: float = 0.1
    brightest: float = 0.95
    published: Published = field(default=Published(1.8))

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(self.dynamics)

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        epoch = self.presented * max(1, len(given(data).train) // self.streams)
        return {"steps": self.epochs * epoch, "steps of alternatives": max(epoch, 100)}

    @override
    def run(self, task: Task) -> Record:
        (seed,) = task.seeds
        train, first = task.data.train, task.condition == self.conditions[0]
        steps = task.lengths["steps" if first else "steps of alternatives"]
        streams = min(self.streams, len(train))
        network = self.network(task.condition, seed, task.data)
        stream = network.at_rest(streams, torch.Generator().manual_seed(seed + 10**6))
        image: list[Tensor] = []

        def learn(step: int) -> None:
            shown, t = divmod(step, self.presented)
            if t == 0 or not image:
                image[:] = self.shown(train, shuffled(len(train), streams, shown, seed), task.data.classes)
            x, target = image
            network.advance(stream, x)
            network.teach(stream, target)
            network.learn(stream, self.rate, self.decay)

        def measure() -> dict[str, list[float]]:
            found = self.errors(network, task.data.test, task.data.classes, seed)
            for layer, (W, B) in enumerate(zip(network.weights[1:], network.feedback, strict=True), 2):
                found[angle_of(layer)] = measures.angle(W, B)
            return {name: [value] for name, value in found.items()}

        curves = course(
            task,
            steps,
            learn=learn,
            measure=measure,
            at=spread(steps, min(20, 1 + steps // 500)) if first else (),
            parts={"network": network, "stream": stream},
            x=lambda step: step * streams / self.presented,
        )
        return Record(curves=curves, arrays=self._traces(network, task.data) if first else {})

    def network(self, condition: str, seed: int, data: ImageData) -> SpikingNetwork:
        """The network of this seed, before learning."""
        return SpikingNetwork(
            (data.features, *self.hidden, self.group * data.classes),
            self.dynamics[condition],
            weights=self.weights,
            feedback=self.feedback,
            generator=torch.Generator().manual_seed(seed),
        )

    def shown(self, split: Split, index: Tensor, classes: int) -> list[Tensor]:
        """The probabilities with which input units spike, and y*: 1 for the units of the class."""
        x, y = split.batch(index)
        target = F.one_hot(y, classes).to(x.dtype).repeat_interleave(self.group, 1)
        return [x.flatten(1).clamp(max=self.brightest), target]

    def errors(self, network: SpikingNetwork, split: Split, classes: int, seed: int) -> dict[str, float]:
        """The percent of images whose class's group did not spike most, by all steps of the presentation and by its last."""
        n = len(split)
        streams = min(self.tested, n)
        stream = network.at_rest(streams, torch.Generator().manual_seed(seed + 2 * 10**6))
        wrong: dict[str, int] = dict.fromkeys((TOTAL, LAST), 0)
        for start in range(0, n, streams):
            index = torch.arange(start, start + streams)
            x, _ = self.shown(split, index % n, classes)
            spikes = torch.zeros(streams, classes * self.group)
            for _ in range(self.presented):
                network.advance(stream, x)
                spikes += stream.spikes[-1]
            for name, counted in ((TOTAL, spikes), (LAST, stream.spikes[-1])):
                answer = counted.view(streams, classes, self.group).sum(2).argmax(1)
                wrong[name] += int((answer != split.labels[index % n])[index < n].sum())
        return {name: 100 * count / n for name, count in wrong.items()}

    def _traces(self, network: SpikingNetwork, data: ImageData) -> dict[str, object]:
        """Potential and signal of one unit per hidden layer while images go by, and how much all units' change per step."""
        images, streams = 4, min(100, len(data.test))
        stream = network.at_rest(streams, torch.Generator().manual_seed(0))
        layers = range(len(self.hidden))
        kept: dict[str, list[list[float]]] = {"potential": [[] for _ in layers], "signal": [[] for _ in layers]}
        changes = {name: np.zeros((images, self.presented)) for name in kept}
        for image in range(images):
            index = (torch.arange(streams) + image * streams) % len(data.test)
            x, target = self.shown(data.test, index, data.classes)
            for t in range(self.presented):
                before = {"potential": _copies(stream.potentials), "signal": _copies(stream.signals)}
                network.advance(stream, x)
                network.teach(stream, target)
                for name, now in (("potential", stream.potentials), ("signal", stream.signals)):
                    for layer in layers:
                        kept[name][layer].append(float(now[layer][0, 0]))
                        changes[name][image, t] += float((now[layer] - before[name][layer]).abs().mean())
        return {**kept, **{f"change of {name}": values[1:].mean(0).tolist() for name, values in changes.items()}}

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        main = self.conditions[0]
        errors = {name: record.curves[TOTAL] for name, record in records.items()}
        shown = self._learned(main, records[main]) if main in records else Outcome()
        shortest = min((curve.x[-1] for name, curve in errors.items() if name != main), default=math.nan)
        if not math.isfinite(shortest):
            return shown
        others = [Row(f"after {shortest:.0f} images: {name}", _at(c, shortest), unit="%") for name, c in errors.items()]
        return replace(shown, rows=[*shown.rows, *others])

    def _learned(self, main: str, record: Record) -> Outcome:
        error = record.curves[TOTAL]
        angles = {layer: record.curves[angle_of(layer)] for layer in range(2, len(self.hidden) + 2)}
        rows = [
            Row("test error", error.last, self.published, "%"),
            Row(LAST, record.curves[LAST].last, None, "%"),
            *(Row(f"angle of W to B, layer {layer}", curve.last, None, "°") for layer, curve in angles.items()),
        ]
        panels = [
            Panel(title="test error", x="images", y="%", lines=[Line.of(main, error)], log_y=True),
            Panel(
                title="weights and feedback",
                x="images",
                y="angle of W to B (°)",
                lines=[Line.of(f"layer {layer}", curve) for layer, curve in angles.items()],
                marks=(90,),
            ),
            *(_traced(record, name, title) for name, title in (("potential", "potentials"), ("signal", "signals"))),
        ]
        claims = judge(LEARNING, record.curves)
        return Outcome(rows=rows, claims=claims, panels=panels, notes=[_simultaneous(record)])


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _at(curve: Curve, x: float) -> list[float]:
    """Every seed's value at x, between measurements along the line that joins them."""
    return [float(np.interp(x, curve.x, row)) for row in curve.values]


def _simultaneous(record: Record) -> str:
    """Where potentials and signals change while an image is shown."""
    changes: dict[str, list[float]] = {name: record.arrays[f"change of {name}"] for name in ("potential", "signal")}
    shares = {name: [f"{100 * v / sum(values):.0f}" for v in values] for name, values in changes.items()}
    evidence = (f"{name}s: {', '.join(share)} % of their change in steps 1, 2, ..." for name, share in shares.items())
    return "Teaching signals and potentials evolve at the same time, as they are made to: " + "; ".join(evidence) + "."


def _traced(record: Record, name: str, title: str) -> Panel:
    traces = record.arrays[name]
    lines = [Line(label=f"layer {i}", x=list(range(1, len(t) + 1)), y=t) for i, t in enumerate(traces, 1)]
    return Panel(title=f"{title} of one unit per hidden layer", x="time step", y=f"{name}", lines=lines)


FIG4 = SpikingDigits(
    name="lillicrap2016/fig4",
    title="A spiking, continuously integrating network learns MNIST by random feedback",
    source="Figure 4; Methods, spiking network",
    length="200 epochs of 5 time steps an image",
    seeds=1,
    minutes=700,
    data="ylecun/mnist",
    together=False,
    dynamics={
        "fa": Dynamics(squash="tanh"),
        "sigma - 1/2": Dynamics(squash="sigmoid"),
        "error from sigma(V)": Dynamics(squash="tanh", error="probabilities"),
        "leak": Dynamics(squash="tanh", integration="leak"),
        "delayed": Dynamics(squash="tanh", sweep="delayed"),
    },
    readings=(
        "The display equations are lost; potentials V <- (1 - tau) V + tau input and signals likewise: tau weights the new "
        "input, since a leak of 0.9 would leave 59 % of an image's potential after the next one's five steps.",
        "phi_d(v) = tanh(v / 2) = 2 sigma(v) - 1, a sigmoid centred on 0; sigma(v) - 1/2 is tried. After one epoch on 50 000 "
        "training images these had 9.4 % and 27.7 % error on the other 10 000, which is why the first is trained for longer.",
        "An output unit's error is y* - s, with s its spike; y* - sigma(V) is tried.",
        "Spikes pass through all layers within a step; one step of delay per layer is tried.",
        "100 images are shown side by side and each adds its whole update at eta = 1e-3, so the weights move per step by a sum "
        "over 100 images and per epoch by as much as if they were shown one by one.",
        "The class is that of the group with most spikes over the five steps.",
        "200 epochs, in an order drawn anew for each; the paper names no number, and over 10 the error falls like the number of "
        "images to the power of -0.3. Biases start at zero. One seed.",
    ),
)
