"""Learning of a function one example at a time, which figures 2, 3d and 5 of the paper have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

import apical
from apical.measures.tensors import angles
from apical.papers.course import Measures, course, spread
from apical.papers.experiment import Task, given
from apical.papers.record import Curve

Uniform = Callable[..., Tensor]
Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]

BLOCK = 250


def uniform(bound: float) -> Uniform:
    """The init that fills a tensor from U[-bound, bound]."""
    return lambda tensor, generator: nn.init.uniform_(tensor, -bound, bound, generator=generator)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor from N(0, 1)."""
    return torch.randn(shape, generator=generator)


def drawn(shape: tuple[int, ...], bound: float, seed: int) -> Tensor:
    """A tensor from U[-bound, bound]: parts of the function to learn, common to all seeds and conditions."""
    return uniform(bound)(torch.empty(shape), generator=torch.Generator().manual_seed(seed))


class Pairs:
    """Examples and their targets, step by step for every seed, the same under all conditions.

    They are drawn in blocks from (seed, number of the block), so a course that is resumed anywhere sees what it would have.

    Args:
        seeds: one sequence for each. inputs: features of x. draw: distribution of x. target: x [N, inputs] -> y* [N, outputs].
    """

    def __init__(
        self, seeds: Sequence[int], inputs: int, target: Callable[[Tensor], Tensor], draw: Draw = normal
    ) -> None:
        self.seeds, self.inputs, self.target, self.draw = tuple(seeds), inputs, target, draw
        self._number = -1
        self._block: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())

    @torch.no_grad()
    def __call__(self, step: int) -> tuple[Float[Tensor, "seeds 1 i"], Float[Tensor, "seeds 1 o"]]:
        """The examples and targets, x and y*, of a step."""
        number, place = divmod(step, BLOCK)
        if number != self._number:
            draws = [torch.Generator().manual_seed(10**9 + seed * 10**6 + number) for seed in self.seeds]
            x = torch.stack([self.draw((BLOCK, self.inputs), draw) for draw in draws], 1)
            y = self.target(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            self._number, self._block = number, (x.unsqueeze(2).unbind(), y.unsqueeze(2).unbind())
        xs, ys = self._block
        return xs[place], ys[place]

    @torch.no_grad()
    def held_out(self, examples: int) -> tuple[Tensor, Tensor]:
        """Examples of nobody's training, the same for all: x [N, inputs], y* [N, outputs]."""
        x = self.draw((examples, self.inputs), torch.Generator().manual_seed(10**9 - 1))
        return x, self.target(x)


class Students:
    """Networks that learn side by side, one per seed, each with weights and feedback of its own.

    Args:
        build: makes the network of a seed. rule: what they learn by. seeds: one network for each. inputs: features of x.
        rate: of gradient descent. frozen: names of modules whose weights stand still.
    """

    def __init__(
        self,
        build: Callable[[int], nn.Module],
        rule: apical.Rule,
        seeds: Sequence[int],
        *,
        inputs: int,
        rate: float,
        frozen: Sequence[str] = (),
    ) -> None:
        networks = [build(seed) for seed in seeds]
        example = torch.zeros(1, inputs)
        for seed, network in zip(seeds, networks, strict=True):
            self.freeze(network, frozen)
            apical.attach(network, rule, example_input=example, generator=torch.Generator().manual_seed(10**6 + seed))
        self.copies = apical.replicate(networks, example_input=example)
        self.n = len(networks)
        self.learner = apical.learner_of(self.copies)
        self.learner.generator.manual_seed(2 * 10**6 + min(seeds))
        self.optimizer = apical.LocalSGD(self.learner, lr=rate)
        self.parts = {"model": self.copies, "optimizer": self.optimizer, "noise": self.learner.generator}

    @staticmethod
    def freeze(network: nn.Module, names: Sequence[str]) -> None:
        """Let only the modules not named learn."""
        for name, module in network.named_children():
            module.requires_grad_(name not in names)

    def learn(self, x: Float[Tensor, "seeds 1 i"], y: Float[Tensor, "seeds 1 o"]) -> None:
        """One step on one example for each: e = y - y*, which is the gradient of half the squared error."""
        outputs = self.copies(x)
        outputs.backward(outputs.detach() - y)
        self.learner.adapt(x, y, half_squared_error)
        self.optimizer.step()

    @torch.no_grad()
    def outputs(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "seeds n o"]:
        """The outputs of every network for the same examples."""
        return self.copies(x.expand(self.n, *x.shape))

    def weight(self, name: str) -> Float[Tensor, "seeds o i"]:
        """The weights W of a layer of every network."""
        weight = self.learner.synapses[name].weight
        return weight.detach().view(self.n, -1, weight.shape[1])

    def feedback(self, name: str) -> Float[Tensor, "seeds o i"]:
        """The feedback B of a layer of every network."""
        feedback = given(self.learner.synapses[name].feedback, "feedback weights")
        return feedback.detach().view(self.n, -1, feedback.shape[1])


class ByPseudoInverse(Students):
    """Students of a hidden layer whose signals travel back through the pseudo-inverse of the weights as they are, e (W^+)^T."""

    @override
    def learn(self, x: Float[Tensor, "seeds 1 i"], y: Float[Tensor, "seeds 1 o"]) -> None:
        *_, last = self.learner.synapses
        inverse = torch.linalg.pinv(self.weight(last).double()).mT
        self.learner.synapses[last].feedback = inverse.flatten(0, 1).float()
        super().learn(x, y)


def half_squared_error(outputs: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
    """The half of each sample's squared error."""
    return (outputs - targets).square().sum(1) / 2


def normalized_squared_error(outputs: Float[Tensor, "seeds n o"], y: Float[Tensor, "n o"]) -> list[float]:
    """The `apical.measures.normalized_squared_error` of every network."""
    outputs, y = outputs.double(), y.double()
    return ((outputs - y).square().sum((1, 2)) / (y - y.mean(0)).square().sum()).tolist()


def signal_angles(
    e: Float[Tensor, "seeds n o"], A: Float[Tensor, "seeds o i"], B: Float[Tensor, "seeds o i"]
) -> list[float]:
    """The mean over samples of the angle between e A and e B, for every network."""
    return angles((e @ A).flatten(0, 1), (e @ B).flatten(0, 1)).view(len(e), -1).nanmean(1).tolist()


def learned(
    task: Task, pairs: Pairs, students: Students, measure: Callable[[], Measures], *, points: int
) -> dict[str, Curve]:
    """The curves of students that learn a task's examples one by one, measured at so many points."""
    examples = task.lengths["examples"]
    return course(
        task,
        examples,
        learn=lambda step: students.learn(*pairs(step)),
        measure=measure,
        at=spread(examples, points),
        parts=students.parts,
    )
