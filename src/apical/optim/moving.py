"""How a parameter moves by its synapse's product: as by `torch.optim.SGD`, but without the product where it can be spared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from apical.optim.shared_velocity import Group, State
    from apical.synapses.synapse import Synapse


def move(
    parameter: nn.Parameter,
    group: Group,
    states: State,
    synapse: Synapse,
    delta: Tensor,
    x: Tensor,
    product: Tensor | None,
    mask: Tensor | None = None,
) -> None:
    """Move `parameter` by the options of its group, by the product delta^T x, made or not, where the mask has ones."""
    lr, m, decay = group["lr"], group["momentum"], group["weight_decay"]
    # In place, so that autograd tells if something else in the graph still needs the weights as they were.
    if not m:
        if mask is None and product is not None and not decay:
            parameter.add_(product, alpha=-lr)
            return
        _add(parameter, 1 - lr * decay, synapse, delta, x, product, -lr, mask)
        return
    state = states[parameter]
    velocity = state.get("momentum_buffer")
    if velocity is None:
        velocity = state["momentum_buffer"] = torch.empty_like(parameter)
        _add(velocity, 0, synapse, delta, x, product, 1, mask)
        if decay:
            velocity.add_(parameter, alpha=decay)
        parameter.add_(velocity, alpha=-lr * (1 + m) if group["nesterov"] else -lr)
        return
    if group["nesterov"]:
        # g + m v_new = (1 + m) v_new - m v_old, without keeping g: the old velocity's share goes first.
        parameter.add_(velocity, alpha=lr * m)
        _add(velocity, m * (1 - lr * decay), synapse, delta, x, product, 1, mask)
        if decay:
            velocity.add_(parameter, alpha=decay)
        parameter.add_(velocity, alpha=-lr * (1 + m))
        return
    keep = 1 - group["dampening"]
    _add(velocity, m, synapse, delta, x, product, keep, mask)
    if decay:
        velocity.add_(parameter, alpha=decay * keep)
    parameter.add_(velocity, alpha=-lr)


def follow(feedback: nn.Parameter, weight: nn.Parameter, group: Group, states: State) -> None:
    """Move feedback by the velocity by which the weights have moved, which from now on is both's."""
    velocity = states[feedback]["momentum_buffer"] = states[weight]["momentum_buffer"]
    feedback.add_(velocity, alpha=-group["lr"])


def _add(
    target: Tensor,
    beta: float,
    synapse: Synapse,
    delta: Tensor,
    x: Tensor,
    product: Tensor | None,
    alpha: float,
    mask: Tensor | None,
) -> None:
    """Make `target` beta times itself plus alpha times the product delta^T x, where the mask has ones."""
    if product is None:
        synapse.add_hebbian(target, x, delta, beta, alpha)
    elif beta == 0:
        torch.mul(product, alpha, out=target)
    elif alpha == 1:
        torch.add(product, target, alpha=beta, out=target)
    else:
        if beta != 1:
            target.mul_(beta)
        target.add_(product, alpha=alpha)
    if mask is not None:
        target.mul_(mask)
