"""What the paper's experiments on MNIST have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.papers.experiment import Experiment
from apical.papers.outcome import Published

BATCH = 32
LAYERS = {"layer 1": "3", "layer 2": "5"}
"""The paper's name -> name of the synapse in `lansdell2020_mlp`; its W2 is read as the matrix of the output [R]."""

DATA = (
    "Training images are the last 55 000 of MNIST's 60 000, as in TensorFlow's split [C]; minibatches of 32 are drawn with "
    "replacement."
)


@dataclass(frozen=True, kw_only=True)
class Shared(Experiment):
    """Several figures of the paper are views of one set of runs: each is a command, and so are all together.

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


def seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose initial weights are those of `seed`."""
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
    """As many passes over the data as `full` iterations are on MNIST: for MNIST, `full`."""
    assert data is not None
    return max(1, round(full * len(training(data)) / 55_000))


def points(steps: int, most: int) -> int:
    """At how many steps to measure: `most`, or fewer where a short run would do little else."""
    return max(2, min(most, steps // 50))


class Minibatches:
    """Minibatches for copies of a network, each from a stream of its own."""

    def __init__(self, seeds: Sequence[int], n: int) -> None:
        self.n = n
        self.streams = {f"stream {seed}": torch.Generator().manual_seed(seed) for seed in seeds}

    def draw(self) -> Tensor:
        """Indices [copies, 32]."""
        return torch.stack([torch.randint(self.n, (BATCH,), generator=one) for one in self.streams.values()])


def by_layer(alignment: Mapping[str, apical.SynapseAlignment]) -> dict[str, float]:
    """What figures 2 and 4 show: "relative error, layer 1" and so on; sign congruence in percent."""
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
    """What the authors' notebook shows [N], a number or the two ends of a range."""
    if value is None:
        return None
    low, high = value if isinstance(value, tuple) else (value, None)
    return Published(low, tag="N", to=high)


def told(values: Mapping[str, float]) -> str:
    """Name and value, in words."""
    return ", ".join(f"{value:.3g} ({name})" for name, value in values.items())


def mean(values: Sequence[float]) -> float:
    """Over seeds."""
    return sum(values) / len(values)


def zero_feedback(learner: apical.Learner) -> None:
    """Ridge regression starts at B = V^-1 S with S = 0 [C]."""
    for synapse in learner.synapses.values():
        if synapse.feedback is not None:
            synapse.feedback = torch.zeros_like(synapse.feedback)
