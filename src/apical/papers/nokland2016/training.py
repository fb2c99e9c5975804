"""Section 4: RMSprop on minibatches of 64, until the training error is gone or 300 epochs are over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.data import ImageData, batches
from apical.learner import Criterion
from apical.losses import binary_cross_entropy
from apical.networks.mlp import ACTIVATIONS
from apical.papers.course import course
from apical.papers.experiment import Experiment, Task, given
from apical.papers.record import Curve
from apical.phases.conditions import backpropagating
from apical.replicas.replicas import Replicas

BATCH = 64
EPOCHS = 300  # the released code stops after 299
STOP = 1e-4  # released code
MNIST_RATE = 1e-4  # released code's default; one rate per data set, says the paper
INPUT_DROPOUT, DROPOUT = 0.1, 0.5
ADVERSARIAL = 0.08  # released code


@dataclass(frozen=True)
class Net:
    """A fully connected network of the tables.

    Args:
        layers, units: "7x240" are 7 hidden layers of 240. activation: of hidden layers.
        variant: "DO" for dropout, "ADV" for training on adversarial inputs, or nothing.

    >>> Net(2, 800, variant="DO").name
    '2x800 tanh + DO'
    """

    layers: int
    units: int
    activation: str = "tanh"
    variant: str = ""

    @property
    def name(self) -> str:
        """The name as the tables write it."""
        return f"{self.layers}x{self.units} {self.activation}" + (f" + {self.variant}" if self.variant else "")

    def build(self, inputs: int, classes: int, generator: torch.Generator, *, zero: bool) -> nn.Sequential:
        """A new network: x [N, inputs] -> [N, classes], linear output.

        Args:
            inputs, classes: how many. generator: draws the weights. zero: weights and biases start at zero; else
                U(+-1/sqrt(fan in)).
        """
        dropout = self.variant == "DO"
        sizes = [inputs, *[self.units] * self.layers]
        made: list[nn.Module] = [nn.Dropout(INPUT_DROPOUT)] if dropout else []
        for before, after in pairwise(sizes):
            made += [nn.Linear(before, after), ACTIVATIONS[self.activation]()]
            made += [nn.Dropout(DROPOUT)] if dropout else []
        net = nn.Sequential(*made, nn.Linear(self.units, classes))
        for layer in net:
            if isinstance(layer, nn.Linear):
                bound = 0.0 if zero else layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
        return net


def start(net: Net, rule: str, data: ImageData, seed: int, *, zero: bool | None = None) -> apical.Learner:
    """The learner of a new network of this seed, attached to "bp", "fa", "dfa" or "ifa" with the released code's feedback.

    Args:
        net, rule, data, seed: of the network. zero: whether weights start at zero; None: as section 4 has it, for all rules
            but BP and all activations but ReLU.
    """
    generator = torch.Generator().manual_seed(seed)
    zero = (rule != "bp" and net.activation != "relu") if zero is None else zero
    model = net.build(data.features, data.classes, generator, zero=zero)
    chosen = apical.rule(rule) if rule == "bp" else apical.rule(rule, init="nokland2016")
    return apical.attach(model, chosen, example_input=torch.zeros(2, data.features), generator=generator)


def per_epoch(data: ImageData) -> int:
    """The number of minibatches in an epoch, the last one smaller."""
    return math.ceil(len(data.train) / BATCH)


@dataclass(frozen=True, kw_only=True)
class UntilStopped(Experiment):
    """An experiment whose networks learn until the training error is gone, for 300 epochs at most."""

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"steps": EPOCHS * per_epoch(given(data))}


@contextmanager
def flushed() -> Iterator[None]:
    """A context in which denormal numbers count as zero, as they do on GPUs.

    Gradients of very deep networks underflow, and arithmetic on such numbers takes several times as long. RMSprop adds 1e-8 to
    what it divides by, so nothing would move by them.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Training:
    """The training of one network, or of copies of several seeds side by side.

    Args:
        model: takes x [N, features], or [copies, N, features]. data: both splits. seeds: of each network.
        rate: of RMSprop. adversarial: size of the step along the sign of the input's gradient, 0 for none.
        decay: over how many steps the rate falls to zero; None: it is constant.
        stops: whether a network is done when the running mean of its training errors is at most 1e-4.
        cost: cost(outputs, targets) -> [N].
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        seeds: Sequence[int],
        *,
        rate: float,
        adversarial: float = 0.0,
        decay: int | None = None,
        stops: bool = True,
        cost: Criterion = binary_cross_entropy,
    ) -> None:
        self.model, self.data, self.seeds = model, data, tuple(seeds)
        self.rate, self.adversarial, self.decay, self.stops, self.cost = rate, adversarial, decay, stops, cost
        self.per_epoch = per_epoch(data)
        self.optimizer = torch.optim.RMSprop(model.parameters(), lr=rate, alpha=0.99, eps=1e-8, foreach=False)
        self._epoch, self._order = -1, []
        self.wrong, self.seen = torch.zeros(len(seeds), dtype=torch.int64), 0
        self.mean_error = torch.ones(len(seeds), dtype=torch.float64)
        self.done = torch.zeros(len(seeds), dtype=torch.bool)

    def course(
        self, task: Task, steps: int, *, name: str = "course", first: int = 0, every: int | None = None
    ) -> dict[str, Curve]:
        """The errors in % by epoch, after learning for `steps`, counted on from `first`; measured `every` so many (an epoch)."""
        every = every or self.per_epoch
        return course(
            task,
            steps,
            learn=lambda step: self.learn(first + step),
            measure=self.measure,
            at=range(every, steps, every),
            parts={"training": self},
            name=name,
            x=lambda step: (first + step) / self.per_epoch,
            enough=lambda found: bool(self.done.all()),
        )

    def learn(self, step: int) -> None:
        """One minibatch for every network, in an order of its own."""
        if self.decay is not None:
            self.optimizer.param_groups[0]["lr"] = self.rate * (1 - step / self.decay)
        x, y = self.data.train.batch(self._batch(step))
        x = self._shaped(x)
        self.model.train()
        if self.adversarial:
            x = self.worsened(x, y)
        outputs = self.model(x).reshape(len(y), -1)
        self.cost(outputs, y).sum().backward()  # Summed, not averaged: released code.
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wrong += (outputs.detach().argmax(1) != y).view(len(self.seeds), -1).sum(1)
        self.seen += len(y) // len(self.seeds)

    @torch.no_grad()
    def measure(self) -> dict[str, list[float]]:
        """The test error, and the training error of the minibatches since the last call, in %; nan once a network is done."""
        before = self.done.clone()
        wrong = torch.zeros(len(self.seeds), dtype=torch.int64)
        self.model.eval()
        for index in torch.arange(len(self.data.test)).split(1000):
            x, y = self.data.test.batch(index)
            x = x.flatten(1).expand(len(self.seeds), -1, -1)
            outputs = self.model(x) if isinstance(self.model, Replicas) else self.model(x[0])[None]
            wrong += (outputs.argmax(2) != y).sum(1)
        test, train = wrong / len(self.data.test), self.wrong / self.seen
        self.wrong.zero_()
        self.seen = 0
        if self.stops:
            self.mean_error = 0.75 * self.mean_error + 0.25 * train
            self.done |= self.mean_error <= STOP
        return {
            name: torch.where(before, torch.nan, 100 * error.double()).tolist()
            for name, error in (("test error", test), ("train error", train))
        }

    def _batch(self, step: int) -> Tensor:
        epoch, number = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            draws = [torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch) for seed in self.seeds]
            orders = [list(batches(len(self.data.train), BATCH, generator=draw)) for draw in draws]
            self._epoch, self._order = epoch, [torch.cat(own) for own in zip(*orders, strict=True)]
        return self._order[number]

    def _shaped(self, x: Tensor) -> Tensor:
        return x.view(len(self.seeds), -1, self.data.features) if isinstance(self.model, Replicas) else x.flatten(1)

    def worsened(self, x: Tensor, y: Tensor) -> Tensor:
        """The images after a step of the fast-sign method, with backpropagation's gradient whatever the rule: released code."""
        x.requires_grad_()
        with backpropagating(apical.learner_of(self.model)):
            (gradient,) = torch.autograd.grad(self.cost(self.model(x), y).sum(), x)
        return x.detach().add_(gradient.sign_(), alpha=self.adversarial)

    def state_dict(self) -> dict[str, Any]:
        """The state of all that changes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": (self.wrong, self.seen, self.mean_error, self.done),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.wrong, self.seen, self.mean_error, self.done = state["counts"]
