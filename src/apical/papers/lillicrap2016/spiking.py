"""A network of stochastic spiking units that integrates and learns at every time step (Figure 4).

The paper's display equations are lost; the dynamics here are a reading (reference 3.5), and so are their alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Dynamics:
    """The dynamics of potentials and teaching signals.

    Args:
        tau: integration constant, the same forward and back.
        integration: "new": V <- (1 - tau) V + tau input; "leak": V <- tau V + input.
        squash: phi_d, "sigmoid": sigma(v) - 1/2; "tanh": tanh(v / 2), twice that.
        error: of an output unit, "spikes": y* - s; "probabilities": y* - sigma(V).
        sweep: "within": spikes pass through all layers within a time step, and signals back; "delayed": every layer hears what
            its neighbours did one step before.
    """

    tau: float = 0.9
    integration: Literal["new", "leak"] = "new"  # [R]
    squash: Literal["sigmoid", "tanh"] = "sigmoid"  # [R]
    error: Literal["spikes", "probabilities"] = "spikes"  # [R]
    sweep: Literal["within", "delayed"] = "within"  # [R]

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be above 0 and at most 1, got {self.tau}")

    @property
    def kept(self) -> float:
        """The share of a potential that is left after a step."""
        return self.tau if self.integration == "leak" else 1 - self.tau

    @property
    def taken(self) -> float:
        """The factor of a step's input."""
        return 1.0 if self.integration == "leak" else self.tau

    def phi(self, signal: Tensor) -> Tensor:
        """The squashed signal phi_d(d)."""
        return torch.sigmoid(signal) - 0.5 if self.squash == "sigmoid" else torch.tanh(signal / 2)


@dataclass
class Stream:
    """The activity of a network while N sequences of images go by in parallel; nothing is reset between images.

    Attributes:
        spikes: of input and layers 1..m, [N, n_l], 0 or 1. inputs: what drove layers 1..m in this step, [N, n_{l-1}].
        potentials: V of layers 1..m. rates: sigma(V). signals: d of layers 1..m.
        generator: decides on spikes.
    """

    spikes: list[Tensor]
    inputs: list[Tensor]
    potentials: list[Tensor]
    rates: list[Tensor]
    signals: list[Tensor]
    generator: torch.Generator

    def state_dict(self) -> dict[str, Any]:
        """The whole activity, and the state of the generator."""
        return {**vars(self), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        vars(self).update({name: value for name, value in state.items() if name != "generator"})
        self.generator.set_state(state["generator"])

    def spike(self, probability: Tensor) -> Tensor:
        """A draw for each element: 1 with its probability, else 0."""
        drawn = torch.rand(probability.shape, generator=self.generator, dtype=probability.dtype)
        return (drawn < probability).to(probability.dtype)


class SpikingNetwork:
    """A network of stochastic binary units in layers 1..m.

    Layer l has weights W_l [n_l, n_{l-1}], biases, and fixed feedback B_l [n_l, n_{l-1}].

    Args:
        sizes: n_0..n_m. dynamics: see there. weights, feedback: half-widths of the uniform distributions they are drawn from.
        generator: draws them. dtype: of everything.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dynamics: Dynamics = Dynamics(),
        *,
        weights: float = 0.05,
        feedback: float = 0.1,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must name the input and at least one layer, each with a unit, got {list(sizes)}")
        self.sizes, self.dynamics, self.dtype = tuple(sizes), dynamics, dtype
        shapes = [(n, before) for before, n in pairwise(sizes)]

        def uniform(shape: tuple[int, int], width: float) -> Tensor:
            return torch.empty(shape, dtype=dtype).uniform_(-width, width, generator=generator)

        self.weights = [uniform(shape, weights) for shape in shapes]
        self.biases = [torch.zeros(n, dtype=dtype) for n in sizes[1:]]  # [R]
        self.feedback = [uniform(shape, feedback) for shape in shapes[1:]]
        """B_2..B_m."""

    def at_rest(self, streams: int, generator: torch.Generator) -> Stream:
        """The activity before the first image, all zero, of so many parallel sequences, whose spikes the generator draws."""
        zeros = [torch.zeros(streams, n, dtype=self.dtype) for n in self.sizes]
        return Stream(
            spikes=list(zeros),
            inputs=zeros[:-1],
            potentials=[torch.zeros_like(zero) for zero in zeros[1:]],
            rates=[torch.full_like(zero, 0.5) for zero in zeros[1:]],
            signals=[torch.zeros_like(zero) for zero in zeros[1:]],
            generator=generator,
        )

    def advance(self, stream: Stream, x: Float[Tensor, "n pixels"]) -> None:
        """One time step forward: input units spike with probability x, layer after layer integrates and spikes."""
        before = stream.spikes
        now = [stream.spike(x)]
        for layer, (W, b, V) in enumerate(zip(self.weights, self.biases, stream.potentials, strict=True)):
            driving = (before if self.dynamics.sweep == "delayed" else now)[layer]
            stream.inputs[layer] = driving
            V.addmm_(driving, W.t(), beta=self.dynamics.kept, alpha=self.dynamics.taken)
            V.add_(b, alpha=self.dynamics.taken)
            stream.rates[layer] = torch.sigmoid(V)
            now.append(stream.spike(stream.rates[layer]))
        stream.spikes = now

    def teach(self, stream: Stream, target: Float[Tensor, "n outputs"]) -> None:
        """One time step back: signals of all layers, from y* - s at the output units."""
        d, top = stream.signals, len(self.weights) - 1
        error = target - (stream.spikes[-1] if self.dynamics.error == "spikes" else stream.rates[-1])
        # Upwards, a layer still finds the signal of the step before in the one above.
        layers = range(top) if self.dynamics.sweep == "delayed" else reversed(range(top))
        if self.dynamics.sweep == "within":
            d[top] = error
        for layer in layers:
            phi, B = self.dynamics.phi(d[layer + 1]), self.feedback[layer]
            d[layer].addmm_(phi, B, beta=self.dynamics.kept, alpha=self.dynamics.taken)
        d[top] = error

    def learn(self, stream: Stream, rate: float, decay: float) -> None:
        """Change every weight: dW_l = sum over streams of rate [phi(d_l) (*) psi(V_l)]^T s_{l-1} - decay W_l; biases as from 1.

        psi is the derivative of the logistic function. Every stream counts as an example of its own.
        """
        kept = 1 - decay * len(stream.spikes[0])
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            p = stream.rates[layer]
            delta = self.dynamics.phi(stream.signals[layer]).mul_(p - p * p)
            W.addmm_(delta.t(), stream.inputs[layer], beta=kept, alpha=rate)
            b.mul_(kept).add_(delta.sum(0), alpha=rate)

    def state_dict(self) -> dict[str, Any]:
        """The weights, biases and feedback."""
        return {"weights": self.weights, "biases": self.biases, "feedback": self.feedback}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.weights, self.biases, self.feedback = state["weights"], state["biases"], state["feedback"]
