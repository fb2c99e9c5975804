"""The criteria K, L and beta of two layers on a batch, whose relations theorem 1 states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from apical.learner import Learner
from apical.measures.tensors import Criteria, alignment_criteria
from apical.papers.experiment import given

FIRST, BETWEEN, LAST = "0", "2", "4"
"""The names of the synapses below layer k, from k to k + 1, and above k + 1."""


def held_cost(outputs: Tensor, targets: Tensor) -> Tensor:
    """A cost [N] whose error is 1/2 - onehot whatever the outputs [N, C]: that of logistic outputs before any learning."""
    return (outputs * held_error(outputs, targets)).sum(1)


def held_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The error 1/2 - onehot [N, C] of logistic outputs before any learning."""
    return 0.5 - F.one_hot(targets, outputs.shape[1]).to(outputs)


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The error of the cross entropy: logistic outputs less their targets [N, C]."""
    return outputs.sigmoid() - F.one_hot(targets, outputs.shape[1]).to(outputs)


@dataclass(frozen=True)
class Layers:
    """Layers k and k + 1 on a batch, in float64: activities h, their update directions dh, and the weights between."""

    h_lower: Tensor
    dh_lower: Tensor
    h_upper: Tensor
    dh_upper: Tensor
    W: Tensor
    bias: Tensor

    @staticmethod
    @torch.no_grad()
    def of(learner: Learner, x: Tensor, y: Tensor, *, held: bool) -> Layers:
        """The layers of a tanh network with two hidden layers that learns by "dfa".

        Args:
            learner: of the network. x, y: images [N, features] and labels. held: directions are those before any learning.
        """
        first, between, last = (learner.synapses[name] for name in (FIRST, BETWEEN, LAST))

        def through(synapse, h):
            return h @ synapse.weight.double().t() + synapse.bias.double()

        lower = through(first, x.double()).tanh()
        upper = through(between, lower).tanh()
        outputs = through(last, upper)
        e = held_error(outputs, y) if held else error(outputs, y)
        parts = between.feedback, last.feedback, between.weight, between.bias
        D_lower, D_upper, W, b = (given(part, "direct feedback and biases").double() for part in parts)
        return Layers(lower, e @ D_lower, upper, e @ D_upper, W, b)

    @property
    def slope(self) -> Tensor:
        """The derivative f' of the upper layer."""
        return 1 - self.h_upper.square()

    @property
    def criteria(self) -> Criteria:
        """The criteria K, L and beta, per sample."""
        return alignment_criteria(self.h_lower, self.dh_lower, self.h_upper, self.dh_upper, self.W, self.slope)

    @property
    def identity(self) -> float:
        """The most by which ||dh_k|| L_k and ||dh_{k+1}|| L_{k+1} differ, over samples, beside the product of all norms."""
        found = self.criteria
        lower, upper = self.dh_lower.norm(dim=1), self.dh_upper.norm(dim=1)
        size = lower * (self.dh_upper * self.slope).norm(dim=1) * self.W.norm()
        apart = (lower * found.L_lower - upper * found.L_upper).abs()
        return float((apart / size.clamp(min=torch.finfo(size.dtype).tiny)).max())

    def step(self, sample: int, size: float, *, held_slope: bool) -> tuple[float, float]:
        """K_k of one sample, and how far its L is raised by a step of W along -da_{k+1}^T h_k.

        Args:
            sample: which. size: of the step. held_slope: f' stays as it was before the step, as in the theorem's dL/dW.
        """
        one = slice(sample, sample + 1)
        h, dh, dh_upper, slope = self.h_lower[one], self.dh_lower[one], self.dh_upper[one], self.slope[one]
        W = self.W - size * (dh_upper * slope).t() @ h
        h_upper = (h @ W.t() + self.bias).tanh()
        before = alignment_criteria(h, dh, self.h_upper[one], dh_upper, self.W, slope)
        after = alignment_criteria(h, dh, h_upper, dh_upper, W, slope if held_slope else 1 - h_upper.square())
        return float(before.K_lower), float(after.L - before.L)

    def steepest(self) -> float:
        """The most by which the gradients of K_k and K_{k+1} by the activities differ from the unit directions."""
        h = [self.h_lower.clone().requires_grad_(), self.h_upper.clone().requires_grad_()]
        with torch.enable_grad():
            K = alignment_criteria(h[0], self.dh_lower, h[1], self.dh_upper, self.W, self.slope).K.sum()
            gradients = torch.autograd.grad(K, h)
        units = [dh / dh.norm(dim=1, keepdim=True) for dh in (self.dh_lower, self.dh_upper)]
        return max(float((g - u).abs().max()) for g, u in zip(gradients, units, strict=True))
