"""The linear three-layer network of section 5: its random starts, its flow, and what is measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from apical.measures.tensors import correlation
from apical.papers.course import Measures

SIZES = (40, 100, 100, 10)
TARGET = 0.2
"""Standard deviation of the entries of W* that make the target."""
LAYERS = ("input layer", "middle layer", "top layer")
ERROR = "squared error"


@dataclass(frozen=True)
class Start:
    """A run's beginning: W(0) and R(0) [out, in] of every layer, and the target T [40, 10].

    Args:
        epsilon: part of W's update that R receives; None for backpropagation, which has no R.
    """

    weights: list[Tensor]
    feedback: list[Tensor]
    target: Tensor
    epsilon: float | None

    def feedback_at(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The feedback R = R(0) + epsilon W that belongs to weights grown from 0; empty for backpropagation."""
        if self.epsilon is None:
            return []
        return [R + self.epsilon * W for R, W in zip(self.feedback, weights, strict=True)]


def drawn(epsilon: float | None, sd: float, seed: int) -> Start:
    """The start from a seed: W(0) = 0 and R(0) of standard deviation `sd`; for backpropagation it is W(0)'s."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(out, inp) for inp, out in pairwise(SIZES)]

    def normal(sd: float) -> list[Tensor]:
        return [torch.randn(shape, generator=draw, dtype=torch.float64) * sd for shape in shapes]

    W1, W2, W3 = normal(TARGET)
    feedback, weights = normal(sd), normal(sd)
    if epsilon is not None:
        weights = [torch.zeros_like(W) for W in weights]
    return Start(weights, feedback, (W3 @ W2 @ W1).t(), epsilon)


def flow(W: Sequence[np.ndarray], R: Sequence[np.ndarray] | None, T: np.ndarray, epsilon: float) -> list[np.ndarray]:
    """The changes dW_i/dt of section 5, in shapes [out, in], with T [out, in] and X = I; R(0) None: backpropagation."""
    back = W if R is None else [r + epsilon * w for r, w in zip(R, W, strict=True)]
    E = T - W[2] @ W[1] @ W[0]
    delta = back[2].T @ E
    return [back[1].T @ delta, delta @ W[0].T, E @ (W[1] @ W[0]).T]


def solved(start: Start, times: np.ndarray) -> list[Measures]:
    """The measures along the flow at `times`, to a tolerance far below the error of Euler's method."""
    shapes = [W.shape for W in start.weights]
    ends = np.cumsum([0, *(W.numel() for W in start.weights)])
    R = None if start.epsilon is None else [B.numpy() for B in start.feedback]
    T = start.target.t().numpy()

    def apart(flat: np.ndarray) -> list[np.ndarray]:
        return [flat[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends), shapes, strict=True)]

    def change(t: float, flat: np.ndarray) -> np.ndarray:
        return np.concatenate([d.ravel() for d in flow(apart(flat), R, T, start.epsilon or 0.0)])

    W0 = np.concatenate([W.numpy().ravel() for W in start.weights])
    solution = solve_ivp(change, (0, times[-1]), W0, method="DOP853", t_eval=times, rtol=1e-8, atol=1e-11)
    lines = []
    for flat in solution.y.T:
        W = [torch.from_numpy(w.copy()) for w in apart(flat)]
        B = start.feedback_at(W)
        lines.append(measures([W], [B] if B else [], [start.target]))
    return lines


def measures(
    weights: Sequence[Sequence[Tensor]], feedback: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]
) -> Measures:
    """Squared error of every run, and the correlation of W and R in every layer where there is feedback."""
    found = {ERROR: [float((W[2] @ W[1] @ W[0] - T.t()).square().sum()) for W, T in zip(weights, targets, strict=True)]}
    if feedback:
        for index, layer in enumerate(LAYERS):
            found[layer] = [correlation(W[index], B[index]) for W, B in zip(weights, feedback, strict=True)]
    return found
