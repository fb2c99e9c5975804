"""One velocity for weights and trainable feedback that move by the same sum of products: kept once, in both their states.

Feedback that learns with the weights (Kolen-Pollack) gets the weights' own gradient, so under equal momentum both velocities are
one tensor, computed once. Whatever moves only one of the two has to part them first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

State = Mapping[Any, dict[str, Any]]
"""An optimizer's state: parameter -> name -> value, with the velocity under "momentum_buffer"."""
Group = Mapping[str, Any]


def shares(state: State, weight: nn.Parameter, feedback: nn.Parameter, one: Group, other: Group) -> bool:
    """Whether weights and feedback have one velocity under the options of their groups, or can have: neither has any yet."""
    return bool(
        one["momentum"]
        and state[weight].get("momentum_buffer") is state[feedback].get("momentum_buffer")
        and one["momentum"] == other["momentum"]
        and one["dampening"] == other["dampening"]
        and not (one["weight_decay"] or other["weight_decay"] or one["nesterov"] or other["nesterov"])
    )


def part(state: State, weight: nn.Parameter | None, feedback: nn.Parameter | None) -> None:
    """Give the feedback a velocity of its own, equal to the one that it had together with the weights."""
    velocity, its = _velocity(state, weight), _velocity(state, feedback)
    if velocity is not None and its is velocity:
        state[feedback]["momentum_buffer"] = velocity.clone()


def join(state: State, weight: nn.Parameter | None, feedback: nn.Parameter | None) -> None:
    """Keep two velocities that are equal once: those of a state that was saved with the two together."""
    velocity, its = _velocity(state, weight), _velocity(state, feedback)
    if velocity is None or its is None:
        return
    if velocity.shape == its.shape and velocity.device == its.device and torch.equal(velocity, its):
        state[feedback]["momentum_buffer"] = velocity


def has_velocity(state: State, parameter: nn.Parameter) -> bool:
    """Whether a parameter has moved with momentum before."""
    return _velocity(state, parameter) is not None


def _velocity(state: State, parameter: nn.Parameter | None) -> Tensor | None:
    own = state.get(parameter)
    return None if own is None else own.get("momentum_buffer")
