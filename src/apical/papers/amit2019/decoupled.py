"""The decoupled linear system of section 5: one number lambda per layer, its flow, and the equations that hold along it."""

from __future__ import annotations

import numpy as np

from apical.papers.claims import Statement

EPSILONS = {f"eps={epsilon:g}": epsilon for epsilon in (0.0, 0.25, 0.5, 1.0)}
"""Condition -> part of W's update that the feedback receives."""


def change(values: np.ndarray, back: np.ndarray, target: np.ndarray, epsilon: float) -> np.ndarray:
    """The flow d lambda_i/dt [layers, runs] = prod_{j>i} (lambda_R,j + eps lambda_j) e prod_{j<i} lambda_j.

    Args:
        values: lambda [layers, runs]. back: lambda_R [layers, runs], its first row unused. target: lambda_T [runs].
    """
    feedback = back + epsilon * values
    error = target - values.prod(0)
    return np.stack([feedback[i + 1 :].prod(0) * error * values[:i].prod(0) for i in range(len(values))])


def conserved(values: np.ndarray, back: np.ndarray, epsilon: float) -> np.ndarray:
    """Eq. 16 as a difference [layers - 1, runs], conserved: lambda_R,i lambda_i + eps/2 lambda_i^2 - lambda_{i-1}^2 / 2."""
    return back[1:] * values[1:] + epsilon / 2 * values[1:] ** 2 - values[:-1] ** 2 / 2


def decay(values: np.ndarray, epsilon: float) -> np.ndarray:
    """Eq. 17: -d(e^2)/dt / (2 e^2) [runs], from lambda alone."""
    upper = np.stack([epsilon / 2 * values[j] ** 2 + values[j - 1] ** 2 / 2 for j in range(1, len(values))])
    return sum(
        ((values[:i] ** 2).prod(0) * upper[i:].prod(0) for i in range(len(values))), start=np.zeros(values.shape[1])
    )


def above(below: np.ndarray, back: np.ndarray, epsilon: float) -> np.ndarray:
    """G: lambda_i from lambda_{i-1}, x^2 / (F(x) + lambda_R,i) with F(x) = sqrt(lambda_R,i^2 + eps x^2).

    >>> float(above(np.array(0.5), np.array(0.1), 0.0)) == 0.5**2 / 0.2
    True
    """
    return below**2 / (np.sqrt(back**2 + epsilon * below**2) + back)


def below(above: np.ndarray, back: np.ndarray, epsilon: float) -> np.ndarray:
    """H, which undoes G: lambda_{i-1} from lambda_i, sqrt(2 lambda_R,i x + eps x^2)."""
    return np.sqrt(np.maximum(2 * back * above + epsilon * above**2, 0))  # Below 0 only where steps have left the flow.


def from_first(first: np.ndarray, back: np.ndarray, epsilon: float) -> np.ndarray:
    """Every layer's lambda [layers, runs] from that of the first, layer by layer through G."""
    found = [first]
    for own in back[1:]:
        found.append(above(found[-1], own, epsilon))
    return np.stack(found)


LAWS = (
    Statement(
        "Eq. 16 is conserved",
        ("eq. 16",),
        lambda deviation: deviation < 1e-9,
        lambda deviation: f"largest deviation {deviation:.1g}",
        "derived",
    ),
    Statement(
        "Eq. 17 gives the error's descent",
        ("eq. 17",),
        lambda mismatch: mismatch < 1e-6,
        lambda mismatch: f"largest relative difference {mismatch:.1g}",
        "derived",
    ),
    Statement(
        "G gives every layer's λ from that of the layer below, H the reverse (eqs 12 to 15)",
        ("G", "H"),
        lambda g, h: max(g, h) < 1e-8,
        lambda g, h: f"largest deviation {g:.1g} from G, {h:.1g} from the squares of H",
        "derived",
    ),
    Statement(
        "λ1 alone gives the error's descent, through G in eq. 17 (eqs 18, 19)",
        ("rate by the first",),
        lambda mismatch: mismatch < 1e-6,
        lambda mismatch: f"largest relative difference {mismatch:.1g}",
        "derived",
    ),
)
"""About the largest deviations from each along a run."""
