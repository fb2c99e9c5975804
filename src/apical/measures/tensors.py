"""Measures of how feedback stands to the weights it replaces (reference 1.21, 1.22). Pure functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def angles(a: Float[Tensor, "n f"], b: Float[Tensor, "n f"]) -> Tensor:
    """Angle between rows [n], in degrees from 0 to 180; nan where a row is zero. Accurate near 0 and 180 as well.

    Obtuse angles are not folded: they mean feedback that opposes the gradient.

    >>> angles(torch.eye(2), torch.tensor([[1.0, 1.0], [-1.0, 0.0]])).round(decimals=6)
    tensor([45., 90.], dtype=torch.float64)
    """
    a, b = a.detach().double(), b.detach().double()
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    a, b = a / length_a, b / length_b
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)))


def angle(a: Tensor, b: Tensor) -> float:
    """Angle of two tensors of one shape, flattened, in degrees from 0 to 180; nan where one is zero.

    >>> angle(torch.eye(2), -torch.eye(2))
    180.0
    """
    _same_shape(a, b)
    return float(angles(a.reshape(1, -1), b.reshape(1, -1)))


def unit_angles(W: Float[Tensor, "o i *k"], B: Float[Tensor, "o i *k"]) -> Tensor:
    """Angle of each unit's outgoing weights W[:, j] to its feedback B[:, j], in degrees [i] (lillicrap2016 Fig. 5a).

    A unit is taught by its own column of B, so columns tell which units have aligned.

    >>> unit_angles(torch.eye(2), torch.diag(torch.tensor([2.0, -1.0])))
    tensor([  0., 180.], dtype=torch.float64)
    """
    _same_shape(W, B)
    return angles(W.transpose(0, 1).flatten(1), B.transpose(0, 1).flatten(1))


def relative_error(W: Tensor, B: Tensor) -> float:
    """Distance of B from W, relative to W: ||W - B||_F / ||W||_F (lansdell2020).

    >>> relative_error(torch.eye(2), torch.zeros(2, 2))
    1.0
    """
    _same_shape(W, B)
    return float((W.detach().double() - B.detach().double()).norm() / W.detach().double().norm())


def sign_congruence(W: Tensor, B: Tensor) -> float:
    """Fraction of entries whose signs agree, from 0 to 1 (lansdell2020).

    >>> sign_congruence(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]))
    0.5
    """
    _same_shape(W, B)
    return float((torch.sign(W.detach()) == torch.sign(B.detach())).double().mean())


def correlation(W: Tensor, B: Tensor) -> float:
    """Pearson's correlation over all entries (amit2019 figs 10-12; plain Pearson is a reading); nan for constants.

    >>> round(correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 2.0, 1.0])), 6)
    -1.0
    """
    _same_shape(W, B)
    w, b = W.detach().double().flatten(), B.detach().double().flatten()
    w, b = w - w.mean(), b - b.mean()
    return float((w @ b) / (w.norm() * b.norm()))


def pseudo_backprop(e: Float[Tensor, "n o"], W: Float[Tensor, "o i"]) -> Float[Tensor, "n i"]:
    """Teaching signal through the pseudo-inverse: e (W^+)^T [n, i] (lillicrap2016, 'pseudobackprop').

    It is the smallest change of the layer's input that changes its output by e, or as nearly as one can.

    >>> pseudo_backprop(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    tensor([[0.5000]])
    """
    return e @ torch.linalg.pinv(W.detach()).transpose(0, 1).to(e.dtype)


def pseudo_inverse_angle(W: Float[Tensor, "o i"], B: Float[Tensor, "o i"]) -> float:
    """Angle of W to the pseudo-inverse of the feedback as lillicrap2016 writes it (B transposed), in degrees.

    Near 0, the signals of feedback alignment point as those of `pseudo_backprop` do.

    >>> pseudo_inverse_angle(torch.eye(2), 2 * torch.eye(2))
    0.0
    """
    return angle(W, torch.linalg.pinv(B.detach().transpose(0, 1)))


def normalized_squared_error(outputs: Float[Tensor, "n o"], targets: Float[Tensor, "n o"]) -> float:
    """Squared error over that of predicting each output's mean over the samples (lillicrap2016; the mean is a reading).

    >>> normalized_squared_error(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
    1.0
    """
    _same_shape(outputs, targets)
    error = (outputs - targets).detach().double().square().sum()
    return float(error / (targets.double() - targets.double().mean(0)).square().sum())


@dataclass(frozen=True)
class Criteria:
    """Alignment criteria of one pair of layers k, k + 1, per sample [N] (nokland2016 Theorem 1, eqs 11-19).

    K_k + K_{k+1} is `K`, L_k + L_{k+1} is `L`; `beta` is the angle of dh_k to the backpropagated dh_{k+1}, in degrees.

    >>> one = torch.ones(1)
    >>> Criteria(one, one, one, 2 * one, beta=one).L
    tensor([3.])
    """

    K_lower: Tensor
    K_upper: Tensor
    L_lower: Tensor
    L_upper: Tensor
    beta: Tensor

    @property
    def K(self) -> Tensor:
        """Sum of both layers' K."""
        return self.K_lower + self.K_upper

    @property
    def L(self) -> Tensor:
        """Sum of both layers' L."""
        return self.L_lower + self.L_upper


def alignment_criteria(
    h_lower: Float[Tensor, "n i"],
    dh_lower: Float[Tensor, "n i"],
    h_upper: Float[Tensor, "n o"],
    dh_upper: Float[Tensor, "n o"],
    W: Float[Tensor, "o i"],
    derivative: Float[Tensor, "n o"],
) -> Criteria:
    """Nøkland's K, L and beta for layers k (lower) and k + 1 (upper), h_upper = f(h_lower W^T + b).

    L_k is positive exactly where beta is below 90 degrees, and a small step of W raises L where K is negative.

    Args:
        h_lower, h_upper: activities. dh_lower, dh_upper: the teaching signals that reach them.
        W: weights between the layers. derivative: f'(a_upper).

    >>> one = torch.ones(1, 1)
    >>> found = alignment_criteria(one, one, one, one, W=2 * one, derivative=one)
    >>> float(found.K), float(found.L), float(found.beta)
    (2.0, 4.0, 0.0)
    """
    W = W.detach()
    u_lower, u_upper = (dh / dh.norm(dim=1, keepdim=True) for dh in (dh_lower, dh_upper))
    c_lower = (dh_upper * derivative) @ W
    c_upper = (dh_lower @ W.t()) * derivative
    return Criteria(
        K_lower=(u_lower * h_lower).sum(1),
        K_upper=(u_upper * h_upper).sum(1),
        L_lower=(u_lower * c_lower).sum(1),
        L_upper=(u_upper * c_upper).sum(1),
        beta=angles(dh_lower, c_lower),
    )


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"both tensors need one shape, got {list(a.shape)} and {list(b.shape)}")
