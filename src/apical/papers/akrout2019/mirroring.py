"""The weight mirror in theory: what its mean update is, where B settles, and what it descends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import apical
from apical.losses import squared_error
from apical.measures.tensors import angle
from apical.networks.mlp import mlp
from apical.papers.course import Measures, course, spread
from apical.papers.experiment import Task
from apical.papers.record import Record

SIZES = (30, 100, 20)
BATCH = 100


@dataclass(frozen=True)
class Mirroring:
    """A weight mirror: its options, and by what diag(phi') the covariance is expected to scale W."""

    options: Mapping[str, object]
    bias: bool
    derivative: str
    spread: float = 1.0
    """Variance of the answers over that of a linear unit with the same covariance: 1.36 for ReLU, by numerical check [D]."""


MIRRORS = {
    "ReLU without bias": Mirroring({"activation": "relu"}, False, "half", 1.36),
    "sigmoid (eq. 11)": Mirroring({"activation": "sigmoid", "noise": 0.1}, True, "at b"),
    "sigmoid, bias-blocking (eq. 12)": Mirroring(
        {"activation": "sigmoid", "noise": 0.1, "bias_blocking": True}, True, "at 0"
    ),
}
POINTS = {"decay times rate": True, "decay as printed": False}


def networks(seeds: Sequence[int], activation: str = "tanh", bias: bool = True) -> apical.Replicas:
    """A random network per seed, side by side; without bias its biases are 0."""
    nets = []
    for seed in seeds:
        net, draw = mlp(SIZES, activation).double(), torch.Generator().manual_seed(seed)
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, layer.in_features**-0.5, generator=draw)
                nn.init.normal_(layer.bias, 0.0, 1.0 if bias else 0.0, generator=draw)
        nets.append(net)
    return apical.replicate(nets)


def blank(n: int) -> tuple[Tensor, Tensor]:
    """A batch for n networks that stands for its shape alone: inputs [n, N, in] and targets [n, N]."""
    return torch.zeros(n, BATCH, SIZES[0], dtype=torch.float64), torch.zeros(n, BATCH, dtype=torch.int64)


def attached(nets: apical.Replicas, rule: apical.Rule, seed: int) -> tuple[apical.Learner, apical.Synapse]:
    """The learner, and the only synapse that a signal leaves."""
    learner = apical.attach(
        nets, rule, example_input=blank(nets.copies)[0], generator=torch.Generator().manual_seed(seed)
    )
    return learner, list(learner.synapses.values())[-1]


def feedback_of(synapse: apical.Synapse) -> Tensor:
    """Its feedback, which it has."""
    assert synapse.feedback is not None
    return synapse.feedback


def expectations(task: Task) -> Record:
    """The mean update of every mirror: its angle to what eqs 11 and 12 say, and its length along it."""
    batches, n = task.lengths["mirrors"], len(task.seeds)
    curves, numbers, arrays = {}, {}, {}
    for index, (name, mirroring) in enumerate(MIRRORS.items()):
        nets = networks(task.seeds, bias=mirroring.bias)
        rule = apical.rule("wm", rate=1.0, decay=0.0, init=nn.init.zeros_, **mirroring.options)
        learner, synapse = attached(nets, rule, task.seeds[0])
        expected = _expected(mirroring, synapse, rule.plasticity.noise).chunk(n)  # type: ignore[attr-defined]
        inputs, targets = blank(n)

        def learn(step: int, learner=learner, inputs=inputs, targets=targets) -> None:
            learner.adapt(inputs, targets, squared_error)

        @torch.no_grad()
        def measure(learner=learner, synapse=synapse, expected=expected) -> Measures:
            found = feedback_of(synapse).chunk(n)
            count = max(learner.adapted, 1)
            return {
                "angle": [angle(B, E) if learner.adapted else math.nan for B, E in zip(found, expected, strict=True)],
                "slope": [float((B * E).sum() / E.norm() ** 2 / count) for B, E in zip(found, expected, strict=True)],
            }

        at = spread(batches, 20, logarithmic=True)[1:]
        parts = {"model": nets, "learner": learner}
        found = course(task, batches, learn=learn, measure=measure, at=at, parts=parts, name=f"wm-{index}")
        curves[f"{name}: angle"], numbers[f"{name}: slope"] = found["angle"], found["slope"].last
        arrays[f"{name}: expected angle"] = [
            math.degrees(math.atan(math.sqrt(mirroring.spread * SIZES[1] / (count * BATCH))))
            for count in found["angle"].x
        ]
    return Record(curves=curves, numbers=numbers, arrays=arrays)


@torch.no_grad()
def _expected(mirroring: Mirroring, synapse: apical.Synapse, noise: float) -> Tensor:
    """sigma^2 diag(phi') W (1 - 1/N), the last factor for the batch mean that is subtracted."""
    assert synapse.bias is not None
    if mirroring.derivative == "half":
        slope = torch.full_like(synapse.bias, 0.5)
    else:
        y = torch.sigmoid(synapse.bias if mirroring.derivative == "at b" else torch.zeros_like(synapse.bias))
        slope = y * (1 - y)
    return noise**2 * slope[:, None] * synapse.weight * (1 - 1 / BATCH)


def fixed_points(task: Task) -> Record:
    """Where B ends with the printed rate and decay, read in both ways."""
    n, batches = len(task.seeds), task.lengths["mirrors"]
    numbers = {}
    for name, times_rate in POINTS.items():
        nets = networks(task.seeds, "relu", bias=False)
        rule = apical.rule("wm", decay_times_rate=times_rate, init=nn.init.zeros_)
        learner, synapse = attached(nets, rule, task.seeds[0])
        for _ in range(batches):
            learner.adapt(*blank(n), squared_error)
        pairs = zip(feedback_of(synapse).chunk(n), synapse.weight.detach().chunk(n), strict=True)
        numbers[name] = [float((B * W).sum() / W.norm() ** 2) for B, W in pairs]
    return Record(numbers=numbers)


def descends(task: Task) -> Record:
    """A mirror step from B by the library, and a gradient step on eq. 22 with the same noise."""
    n, rate, decay = len(task.seeds), 0.1, 0.5
    nets = networks(task.seeds, "relu")
    learner, synapse = attached(nets, apical.rule("wm", rate=rate, decay=decay, decay_times_rate=False), task.seeds[0])
    B = feedback_of(synapse).clone()
    generator = learner.generator.get_state()
    learner.adapt(*blank(n), squared_error)
    stepped = feedback_of(synapse).clone()
    # From zero, the same noise leaves the product alone.
    learner.generator.set_state(generator)
    synapse.feedback = torch.zeros_like(B)
    learner.adapt(*blank(n), squared_error)
    product = feedback_of(synapse) / rate
    B.requires_grad_()
    loss = -(product * B).sum() + decay / (2 * rate) * B.square().sum()
    (gradient,) = torch.autograd.grad(loss, B)
    apart = (B - rate * gradient - stepped).abs().detach()
    return Record(numbers={"deviation": [float(own.max()) for own in apart.chunk(n)]})
