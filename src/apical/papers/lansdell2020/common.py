"""Data, minibatches, noise and words that the paper's experiments share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.papers.course import Measures, course, spread
from apical.papers.experiment import Experiment, Task, given
from apical.papers.outcome import Published
from apical.papers.record import Curve

BATCH = 32
LAYERS = {"layer 1": "3", "layer 2": "5"}
"""The paper's name -> name of the synapse in `lansdell2020_mlp`; its W2 is read as the matrix of the output [R]."""

Network = TypeVar("Network", bound=nn.Module)

DATA = (
    "Training images are the last 55 000 of MNIST's 60 000, as in TensorFlow's split [C]; minibatches of 32 are drawn with "
    "replacement."
)


@dataclass(frozen=True, kw_only=True)
class Shared(Experiment):
    """An experiment that is one view of a set of runs, as several figures are: each is a command, and so are all together.

    Args:
        shows: which parts of the outcome this one gives.
        family: name of the runs; experiments of one family make the same runs under the same conditions.
    """

    shows: tuple[str, ...]
    family: str

    @property
    @override
    def runs(self) -> str:
        return self.family


@contextmanager
def noisy(models: Sequence[nn.Module], sd: float) -> Iterator[None]:
    """While open, activities of all the networks get Gaussian noise."""
    handles = [apical.NoisyActivations(model, sd) for model in models]
    try:
        yield
    finally:
        for one in handles:
            one.remove()


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """While open, PyTorch's global generator, which noisy activations draw from, goes on from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seeded(seed: int, make: Callable[[], Network]) -> Network:
    """A network made by `make` with the initial weights of `seed`."""
    with repeatable(seed):
        return make()


def pixels(split: Split) -> Float[Tensor, "n pixels"]:
    """All images of a split, from 0 to 1."""
    return split.batch(torch.arange(len(split)))[0].flatten(1)


def training(data: ImageData) -> Split:
    """Training images without the first twelfth, TensorFlow's validation images [C]."""
    skipped = len(data.train) // 12
    return Split(data.train.images[skipped:], data.train.labels[skipped:])


def iterations(full: int, data: ImageData | None) -> int:
    """The number of iterations that pass over the data as often as `full` iterations pass over MNIST."""
    return max(1, round(full * len(training(given(data))) / 55_000))


def points(steps: int, most: int) -> int:
    """The number of steps to measure at: `most`, or fewer where a short run would do little else.

    >>> points(1_000_000, 50), points(500, 50)
    (50, 10)
    """
    return max(2, min(most, steps // 50))


def trained(
    task: Task, parts: Mapping[str, Any], *, learn: Callable[[int], None], measure: Callable[[], Measures], most: int
) -> dict[str, Curve]:
    """The curves, over thousands of iterations, of a training that is measured at `most` steps; `parts` as in `course`."""
    steps = task.lengths["iterations"]
    at = spread(steps, points(steps, most))
    return course(task, steps, learn=learn, measure=measure, at=at, parts=parts, x=lambda step: step / 1000)


class Minibatches:
    """Minibatches for copies of a network, each from a stream of its own."""

    def __init__(self, seeds: Sequence[int], n: int) -> None:
        self.n = n
        self.streams = {f"stream {seed}": torch.Generator().manual_seed(seed) for seed in seeds}

    def draw(self) -> Tensor:
        """Indices [copies, 32]."""
        return torch.stack([torch.randint(self.n, (BATCH,), generator=one) for one in self.streams.values()])


def by_layer(alignment: Mapping[str, apical.SynapseAlignment]) -> dict[str, float]:
    """The measures of figures 2 and 4: "relative error, layer 1" and so on; sign congruence in percent."""
    found = {}
    for layer, name in LAYERS.items():
        one = alignment[name]
        congruence = one.sign_congruence
        values = {
            "relative error": one.relative_error,
            "angle": one.layer_angle,
            "sign congruence": None if congruence is None else 100 * congruence,
        }
        found |= {f"{key}, {layer}": math.nan if value is None else value for key, value in values.items()}
    return found


def by_eye(value: float | tuple[float, float] | None) -> Published | None:
    """A published value read from the authors' notebook [N], a number or the two ends of a range.

    >>> by_eye((15, 20))
    Published(value=15, spread=None, tag='N', to=20)
    """
    if value is None:
        return None
    low, high = value if isinstance(value, tuple) else (value, None)
    return Published(low, tag="N", to=high)


def told(values: Mapping[str, float]) -> str:
    """Values with their names, in words.

    >>> told({"c = 0.1": 0.25})
    '0.25 (c = 0.1)'
    """
    return ", ".join(f"{value:.3g} ({name})" for name, value in values.items())


def mean(values: Sequence[float]) -> float:
    """The mean over seeds."""
    return sum(values) / len(values)


def zero_feedback(learner: apical.Learner) -> None:
    """Set all feedback to 0, where ridge regression starts: B = V^-1 S with S = 0 [C]."""
    for synapse in learner.synapses.values():
        if synapse.feedback is not None:
            synapse.feedback = torch.zeros_like(synapse.feedback)
