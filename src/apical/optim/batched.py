"""Updates that wait for each other, so that one launch makes many: on a GPU a launch takes as long as a small layer's update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from apical.optim.moving import move

if TYPE_CHECKING:
    from apical.optim.shared_velocity import Group, State
    from apical.synapses.synapse import Synapse

LIMIT = 1 << 26
"""Bytes of products that may wait: as many as fill a GPU for long enough, and few beside all gradients of a large network."""


def pays(parameter: Tensor) -> bool:
    """Whether updates are made together."""
    return parameter.is_cuda


class Batched:
    """Updates of one backward pass that are yet to be made. It answers as `apical.optim.moving` does."""

    def __init__(self) -> None:
        self._moves: list[tuple[nn.Parameter, Group, Tensor]] = []
        self._followers: list[tuple[nn.Parameter, nn.Parameter, Group]] = []
        self._bytes = 0

    def move(
        self,
        parameter: nn.Parameter,
        group: Group,
        states: State,
        synapse: Synapse,
        delta: Tensor,
        x: Tensor,
        product: Tensor | None,
        mask: Tensor | None = None,
    ) -> None:
        """Move `parameter` with others, by the product delta^T x; where there is a mask, at once."""
        if mask is not None:
            move(parameter, group, states, synapse, delta, x, product, mask)
            return
        if product is None:
            product = synapse.hebbian(x, delta)
        if product.dtype != parameter.dtype or product.stride() != parameter.stride():
            product = torch.empty_like(parameter).copy_(product)
        self._moves.append((parameter, group, product))
        self._bytes += product.nbytes

    def follow(self, feedback: nn.Parameter, weight: nn.Parameter, group: Group, states: State) -> None:
        """Move feedback by the velocity that the weights will have."""
        self._followers.append((feedback, weight, group))

    @property
    def full(self) -> bool:
        """Whether no more may wait."""
        return self._bytes >= LIMIT

    def clear(self) -> None:
        """Let go of what waits."""
        self._moves, self._followers, self._bytes = [], [], 0

    def flush(self, states: State) -> None:
        """Make all updates, by PyTorch's fused kernels: those of one group, device and dtype together."""
        together: dict[tuple[object, ...], list[tuple[nn.Parameter, Group, Tensor]]] = {}
        for one in self._moves:
            parameter, group, _ = one
            started = states[parameter].get("momentum_buffer") is not None
            key = id(group), parameter.device, parameter.dtype, started
            together.setdefault(key, []).append(one)
        for found in together.values():
            parameters, groups, products = map(list, zip(*found, strict=True))
            group = groups[0]
            velocities = [states[p].get("momentum_buffer") for p in parameters]
            sgd(
                parameters,
                products,
                velocities,
                fused=True,
                maximize=False,
                **{name: group[name] for name in ("weight_decay", "momentum", "lr", "dampening", "nesterov")},
            )
            if group["momentum"]:
                for parameter, velocity in zip(parameters, velocities, strict=True):
                    states[parameter]["momentum_buffer"] = velocity
        rates: dict[float, list[tuple[nn.Parameter, Tensor]]] = {}
        for feedback, weight, group in self._followers:
            velocity = states[feedback]["momentum_buffer"] = states[weight]["momentum_buffer"]
            rates.setdefault(group["lr"], []).append((feedback, velocity))
        for rate, pairs in rates.items():
            torch._foreach_add_([f for f, _ in pairs], [v for _, v in pairs], alpha=-rate)  # pyright: ignore
        self.clear()
