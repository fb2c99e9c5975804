"""The weight mirror in theory: its mean update, the point where B settles, and the loss that it descends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Mirroring:
    """A weight mirror, and the slope diag(phi') with which the covariance is expected to scale W.

    Args:
        activation, noise, blocking: of the mirror. bias: whether the network has biases.
        slope: mean of phi' under the noise, of biases [out].
        spread: variance of the answers over that of a linear unit with the same covariance; 1.36 for ReLU, found numerically [D].
    """

    activation: str
    slope: Callable[[Tensor], Tensor]
    noise: float = 1.0
    blocking: bool = False
    bias: bool = True
    spread: float = 1.0

    @property
    def rule(self) -> apical.Rule:
        """The rule, whose feedback starts at 0 and does not decay, so that it sums all updates."""
        return apical.rule(
            "wm",
            rate=1.0,
            decay=0.0,
            init=nn.init.zeros_,
            activation=self.activation,
            noise=self.noise,
            bias_blocking=self.blocking,
        )


def sigmoid_slope(z: Tensor) -> Tensor:
    """The derivative of the sigmoid at z."""
    y = torch.sigmoid(z)
    return y * (1 - y)


MIRRORS = {
    "ReLU without bias": Mirroring(activation="relu", slope=lambda b: torch.full_like(b, 0.5), bias=False, spread=1.36),
    "sigmoid (eq. 11)": Mirroring(activation="sigmoid", slope=sigmoid_slope, noise=0.1),
    "sigmoid, bias-blocking (eq. 12)": Mirroring(
        activation="sigmoid", slope=lambda b: sigmoid_slope(torch.zeros_like(b)), noise=0.1, blocking=True
    ),
}
POINTS = {"decay times rate": True, "decay as printed": False}
"""How the decay of eq. 21 is read -> the option `decay_times_rate`."""


def networks(seeds: Sequence[int], activation: str = "tanh", bias: bool = True) -> apical.Replicas:
    """Random networks, one per seed, side by side; without bias their biases are 0."""
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
    """The learner that `rule` makes of the networks, and its only synapse that a signal leaves."""
    learner = apical.attach(
        nets, rule, example_input=blank(nets.copies)[0], generator=torch.Generator().manual_seed(seed)
    )
    return learner, list(learner.synapses.values())[-1]


def mirrored(synapse: apical.Synapse) -> Tensor:
    """The feedback that a mirror keeps [out, in]."""
    return synapse.get_buffer("feedback")


def expectations(task: Task) -> Record:
    """The mean update of every mirror: its angle to the one of eqs 11 and 12, and its length along it."""
    batches, n = task.lengths["mirrors"], len(task.seeds)
    curves, numbers, arrays = {}, {}, {}
    for index, (name, mirroring) in enumerate(MIRRORS.items()):
        nets = networks(task.seeds, bias=mirroring.bias)
        learner, synapse = attached(nets, mirroring.rule, task.seeds[0])
        expected = _expected(mirroring, synapse).chunk(n)
        inputs, targets = blank(n)

        def learn(step: int, learner=learner, inputs=inputs, targets=targets) -> None:
            learner.adapt(inputs, targets, squared_error)

        @torch.no_grad()
        def measure(learner=learner, synapse=synapse, expected=expected) -> Measures:
            found = mirrored(synapse).chunk(n)
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
def _expected(mirroring: Mirroring, synapse: apical.Synapse) -> Tensor:
    """The mean update sigma^2 diag(phi') W (1 - 1/N), the last factor for the batch mean that is subtracted."""
    slope = mirroring.slope(synapse.get_parameter("bias"))
    return mirroring.noise**2 * slope[:, None] * synapse.weight * (1 - 1 / BATCH)


def fixed_points(task: Task) -> Record:
    """The multiple of W at which B settles with the printed rate and decay, read in both ways."""
    n, batches = len(task.seeds), task.lengths["mirrors"]
    numbers = {}
    for name, times_rate in POINTS.items():
        nets = networks(task.seeds, "relu", bias=False)
        rule = apical.rule("wm", decay_times_rate=times_rate, init=nn.init.zeros_)
        learner, synapse = attached(nets, rule, task.seeds[0])
        for _ in range(batches):
            learner.adapt(*blank(n), squared_error)
        pairs = zip(mirrored(synapse).chunk(n), synapse.weight.detach().chunk(n), strict=True)
        numbers[name] = [float((B * W).sum() / W.norm() ** 2) for B, W in pairs]
    return Record(numbers=numbers)


def descends(task: Task) -> Record:
    """The difference of the library's mirror step from B and a gradient step on eq. 22 with the same noise."""
    n, rate, decay = len(task.seeds), 0.1, 0.5
    nets = networks(task.seeds, "relu")
    learner, synapse = attached(nets, apical.rule("wm", rate=rate, decay=decay, decay_times_rate=False), task.seeds[0])
    B = mirrored(synapse).clone()
    generator = learner.generator.get_state()
    learner.adapt(*blank(n), squared_error)
    stepped = mirrored(synapse).clone()
    # From zero, the same noise leaves the product alone.
    learner.generator.set_state(generator)
    synapse.feedback = torch.zeros_like(B)
    learner.adapt(*blank(n), squared_error)
    product = mirrored(synapse) / rate
    B.requires_grad_()
    loss = -(product * B).sum() + decay / (2 * rate) * B.square().sum()
    (gradient,) = torch.autograd.grad(loss, B)
    apart = (B - rate * gradient - stepped).abs().detach()
    return Record(numbers={"deviation": [float(own.max()) for own in apart.chunk(n)]})
