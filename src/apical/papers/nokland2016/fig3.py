"""Figure 3: what hidden layers have learned, by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from typing_extensions import override

from apical.papers.claims import Statement, judge
from apical.papers.experiment import Task
from apical.papers.nokland2016.training import MNIST_RATE, Net, Training, UntilStopped, start
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Record

ByLayer = Mapping[str, float]
"""Layer, from the input on -> percent of nearest neighbours of another class, mean over seeds."""


def falling(means: ByLayer) -> bool:
    """True if every layer has less than the one before, or than a fifth of the input's."""
    first, *_ = found = list(means.values())
    return all(after < before or after < first / 5 for before, after in pairwise(found))


def gain(means: ByLayer) -> bool:
    """True if the first hidden layer has less than the input."""
    before, after, *_ = means.values()
    return after < before


def told(means: ByLayer) -> str:
    """The values, in words."""
    return ", ".join(f"{layer} {mean:.1f} %" for layer, mean in means.items())


def separating(rule: str) -> tuple[Statement, ...]:
    """The statements on the classes of a rule's layers."""
    return (
        Statement(
            f"{rule}: classes lie further apart with depth (here: every layer has fewer nearest neighbours of another "
            "class in the plane than the one before, or no more than a fifth of the input's)",
            (rule,),
            falling,
            told,
        ),
        Statement(
            f"{rule}: clusters are separated at the last layer except for stray points (here: at most 3 % of nearest "
            "neighbours of another class)",
            (rule,),
            lambda means: list(means.values())[-1] <= 3,
            told,
        ),
    )


STATEMENTS = (
    *separating("bp"),
    *separating("dfa"),
    Statement("dfa: there is a gain from input to first layer", ("dfa",), gain, told),
)


@dataclass(frozen=True, kw_only=True)
class Features(UntilStopped):
    """Test images, and their activity in every hidden layer, in the plane.

    Args:
        net: that learns. rate: of RMSprop. points: how many images. perplexity, iterations: of t-SNE, which is not shortened.
    """

    net: Net
    rate: float = MNIST_RATE  # [R]
    points: int = 1000  # [R]
    perplexity: float = 30.0  # [R]
    iterations: int = 1000  # [R]

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return ("bp", "dfa")

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the input and of the hidden layers."""
        return ("input", *(f"h{layer}" for layer in range(1, self.net.layers + 1)))

    @override
    def run(self, task: Task) -> Record:
        (seed,) = task.seeds
        training = Training(
            start(self.net, task.condition, task.data, seed).model, task.data, task.seeds, rate=self.rate
        )
        curves = training.course(task, task.lengths["steps"])
        index = torch.arange(min(self.points, len(task.data.test)))
        x, labels = task.data.test.batch(index)
        planes = {}
        numbers = {name: curve.last for name, curve in curves.items()}
        for layer, values in zip(self.layers, activities(training.model, x.flatten(1)), strict=True):
            planes[layer] = self._plane(values.double().numpy(), seed)
            numbers[f"neighbours {layer}"] = [neighbour_error(planes[layer], labels.numpy())]
        arrays = {"labels": labels.tolist(), **{layer: plane.round(2).tolist() for layer, plane in planes.items()}}
        return Record(curves=curves, numbers=numbers, arrays=arrays)

    def _plane(self, values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        from sklearn.manifold import TSNE  # Here, because importing it takes seconds.

        perplexity = min(self.perplexity, (len(values) - 1) / 3)
        plane = TSNE(perplexity=perplexity, max_iter=self.iterations, init="pca", random_state=seed)
        return np.asarray(plane.fit_transform(values), dtype=np.float64)

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        apart = {
            rule: {layer: record.numbers[f"neighbours {layer}"] for layer in self.layers}
            for rule, record in records.items()
        }
        rows = [
            Row(f"{rule}, {layer}: nearest neighbour of another class", errors, unit="%")
            for rule, by_layer in apart.items()
            for layer, errors in by_layer.items()
        ]
        means = {
            rule: {layer: float(np.mean(errors)) for layer, errors in by_layer.items()}
            for rule, by_layer in apart.items()
        }
        panels = [self._panel(rule, layer, record) for rule, record in records.items() for layer in self.layers]
        return Outcome(rows=rows, claims=judge(STATEMENTS, means), panels=panels, columns=len(self.layers))

    def _panel(self, rule: str, layer: str, record: Record) -> Panel:
        plane, labels = np.asarray(record.arrays[layer], dtype=float), np.asarray(record.arrays["labels"])
        lines = [
            Line(label=str(label), x=plane[labels == label, 0].tolist(), y=plane[labels == label, 1].tolist())
            for label in np.unique(labels)
        ]
        return Panel(title=f"{rule}, {layer}", lines=lines, kind="points")


@torch.no_grad()
def activities(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The input [N, features] and the activity of every hidden layer [N, units] of a network whose layers are its children."""
    *hidden, _ = model.eval().children()
    found = [x]
    for layer in hidden:
        x = layer(x)
        if not isinstance(layer, nn.Linear | nn.Dropout):
            found.append(x)
    return found


def neighbour_error(points: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The percent of points [N, 2] whose nearest other point has another label."""
    distances = np.square(points[:, None] - points[None]).sum(2)
    np.fill_diagonal(distances, np.inf)
    return 100 * float(np.mean(labels[distances.argmin(1)] != labels))


FIG3 = Features(
    name="nokland2016/fig3",
    title="t-SNE of the input and of hidden layers, 3x400 tanh on MNIST",
    source="Figure 3",
    length="until the training error is 0.01 %, at most 300 epochs",
    seeds=1,
    minutes=18,
    data="ylecun/mnist",
    together=False,
    net=Net(3, 400),
    readings=(
        "The first 1000 test images; scikit-learn's t-SNE with perplexity 30 and 1000 iterations, from the principal components; "
        "the paper prints none of its settings.",
        "Separation is judged by nearest neighbours in the plane; the paper judges by eye.",
    ),
)
