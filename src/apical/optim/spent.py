"""Parameters whose gradient was used up in the backward pass: to clip it, or to take a loss's scale out of it, is refused.

PyTorch's clipping and its GradScaler offer no hook: they look at ``.grad``, and pass in silence over what has none. So from the
backward pass until the optimizer's step such a parameter is of a class of its own (like PyTorch's `UninitializedParameter` until
its first use), which tells them apart from all others who look.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

_REFUSED = {
    "torch.nn.utils.clip_grad": "there is no gradient of {} to clip, because LocalSGD takes it in the backward pass; clip with "
    "torch.optim.SGD",
    "torch.amp.grad_scaler": "LocalSGD took the gradient of {} in the backward pass, with the loss's scale in it; make the "
    "GradScaler before the first backward pass, so that LocalSGD leaves it gradients, or use torch.optim.SGD, or bfloat16, which "
    "needs none",
}
"""Module of PyTorch whose functions look for gradients -> why it finds none."""


class Taker(Protocol):
    """What uses gradients up."""

    def names(self, parameter: nn.Parameter) -> str | None:
        """The synapse that has `parameter`; None: none of its own."""
        ...


takers: weakref.WeakSet[Any] = weakref.WeakSet()
"""All `Taker`s there are, to name the synapse by."""

_grad: Any = torch.Tensor.grad


class Spent(nn.Parameter):
    """A parameter that has its update, and no gradient, until the optimizer's step."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        if id(self) not in memo:
            memo[id(self)] = nn.Parameter(self.data.clone(memory_format=torch.preserve_format), self.requires_grad)
        return memo[id(self)]

    def _look(self) -> Tensor | None:
        found = _grad.__get__(self)
        if found is None:
            words = _REFUSED.get(sys._getframe(1).f_globals.get("__name__", ""))
            if words is not None:
                labels = (one.names(self) for one in takers)
                label = next((label for label in labels if label is not None), None)
                raise RuntimeError(words.format("a parameter" if label is None else f"'{label}'"))
        return found

    grad = property(_look, _grad.__set__, _grad.__delete__)  # pyright: ignore


def spendable(parameter: nn.Parameter) -> bool:
    """Whether its class may be `Spent` for a while; somebody else's class stays as it is."""
    return type(parameter) in (nn.Parameter, Spent)
