"""Figure 3: what hidden layers have learned, by t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apical.data import ImageData
from apical.papers.experiment import Experiment, Task
from apical.papers.nokland2016.training import EPOCHS, MNIST_RATE, Net, Training, per_epoch, start
from apical.papers.outcome import Claim, Line, Outcome, Panel, Row
from apical.papers.record import Record


@dataclass(frozen=True, kw_only=True)
class Features(Experiment):
    """Test images, and their activity in every hidden layer, in the plane.

    points: how many images. perplexity: of t-SNE.
    """

    net: Net
    rate: float = MNIST_RATE  # [R]
    points: int = 1000  # [R]
    perplexity: float = 30.0  # [R]
    iterations: int = 1000  # [R]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The rules."""
        return ("bp", "dfa")

    @property
    def layers(self) -> tuple[str, ...]:
        """The input and the hidden layers."""
        return ("input", *(f"h{layer}" for layer in range(1, self.net.layers + 1)))

    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Minibatches; t-SNE is not shortened."""
        assert data is not None
        return {"steps": EPOCHS * per_epoch(data)}

    def run(self, task: Task) -> Record:
        """Train until it stops, then look at every layer."""
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

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The planes, layer by layer, and how well they keep the classes apart."""
        rows, claims, panels = [], [], []
        for rule, record in records.items():
            apart = [record.numbers[f"neighbours {layer}"] for layer in self.layers]
            rows += [
                Row(f"{rule}, {layer}: nearest neighbour of another class", errors, unit="%")
                for layer, errors in zip(self.layers, apart, strict=True)
            ]
            means = [float(np.mean(errors)) for errors in apart]
            told = ", ".join(f"{layer} {mean:.1f} %" for layer, mean in zip(self.layers, means, strict=True))
            claims.append(
                Claim(
                    f"{rule}: classes lie further apart with depth (here: every layer has fewer nearest neighbours of another "
                    "class in the plane than the one before, or no more than a fifth of the input's)",
                    all(after < before or after < means[0] / 5 for before, after in pairwise(means)),
                    told,
                )
            )
            claims.append(
                Claim(
                    f"{rule}: clusters are separated at the last layer except for stray points (here: at most 3 % of nearest "
                    "neighbours of another class)",
                    means[-1] <= 3,
                    told,
                )
            )
            if rule == "dfa":
                claims.append(Claim("dfa: there is a gain from input to first layer", means[1] < means[0], told))
            panels += [self._panel(rule, layer, record) for layer in self.layers]
        return Outcome(rows=rows, claims=claims, panels=panels, columns=len(self.layers))

    def _panel(self, rule: str, layer: str, record: Record) -> Panel:
        plane, labels = np.asarray(record.arrays[layer], dtype=float), np.asarray(record.arrays["labels"])
        lines = [
            Line(label=str(label), x=plane[labels == label, 0].tolist(), y=plane[labels == label, 1].tolist())
            for label in np.unique(labels)
        ]
        return Panel(title=f"{rule}, {layer}", lines=lines, kind="points")


@torch.no_grad()
def activities(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The input [N, features] and every hidden layer's activity [N, units]."""
    assert isinstance(model, nn.Sequential)
    model.eval()
    found = [x]
    for layer in list(model)[:-1]:
        x = layer(x)
        if not isinstance(layer, nn.Linear | nn.Dropout):
            found.append(x)
    return found


def neighbour_error(points: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Percent of points [N, 2] whose nearest other point has another label."""
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
