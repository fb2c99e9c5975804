"""A quadratic function learned by a nonlinear network: the training that figure 5 looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

import apical
from apical.measures.tensors import angles
from apical.papers.experiment import Experiment, Task
from apical.papers.lillicrap2016.online import Pairs, Students, drawn, uniform

INPUTS, HIDDEN, OUTPUTS = 20, 1000, 20
ERROR, ANGLE = "normalized squared error", "angle of W to B per unit, mean"


def quadratic() -> Callable[[Tensor], Tensor]:
    """The function to learn, y*_k = x Q_k x^T, with entries of Q_k from U[-0.5, 0.5], common to all seeds and conditions."""
    Q = drawn((OUTPUTS, INPUTS, INPUTS), 0.5, 2016)  # [R] the form; the entries are printed
    return lambda x: (x.unsqueeze(2) * x.unsqueeze(1)).flatten(1) @ Q.flatten(1).t()


def box(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor from U[-2, 2]."""
    return torch.empty(shape).uniform_(-2, 2, generator=generator)


def network(seed: int, hidden: float, output: float) -> nn.Sequential:
    """A 20-1000-20 network, tanh hidden, linear output.

    W_0 and its biases come from U[-hidden, hidden], W and its biases from U[-output, output].
    """
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS))
    for layer, bound in ((net[0], hidden), (net[2], output)):
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return net


def unit_angles(W: Float[Tensor, "seeds o i"], B: Float[Tensor, "seeds o i"]) -> Float[Tensor, "seeds i"]:
    """The `apical.measures.unit_angles` of every network."""
    n, _, units = W.shape
    return angles(W.mT.flatten(0, 1), B.mT.flatten(0, 1)).view(n, units)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Experiment):
    """A 20-1000-20 network learns a quadratic function online by feedback alignment.

    Args:
        rate: of all weights. hidden, output: of the initial weights, see `network`. feedback: B from U[-feedback, feedback].
    """

    rate: float
    hidden: float
    output: float
    feedback: float

    def students(self, task: Task) -> tuple[Pairs, Students]:
        """The examples, and one network per seed, computed together."""
        return Pairs(task.seeds, INPUTS, quadratic(), box), Students(
            lambda seed: network(seed, self.hidden, self.output),
            apical.rule("fa", init=uniform(self.feedback)),
            task.seeds,
            inputs=INPUTS,
            rate=self.rate,
        )
