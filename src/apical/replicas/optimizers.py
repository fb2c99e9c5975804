"""Learning rates and weight decay for each copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apical.per_copy import PerCopy, spread
from apical.replicas.states import dimension_of

PROPORTIONAL: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
)  # fmt: skip
"""Optimizers that treat every entry on its own, with steps proportional to the learning rate."""


class PerCopyRates:
    """Learning rates and weight decay of which each copy in a model has its own, held at every step of one optimizer.

    The optimizer's step with its one learning rate is stretched by each copy's factor; weight decay is applied before the step.

    Args:
        model: in which the copies lie. copies: how many.
        rates: a factor of the optimizer's learning rate for each copy, or None.
        weight_decay: a number for each copy, or None.

    Raises:
        ValueError: for numbers that are not one for each copy.
    """

    def __init__(
        self, model: nn.Module, copies: int, rates: Sequence[float] | None, weight_decay: Sequence[float] | None
    ) -> None:
        for name, numbers in (("rates", rates), ("weight_decay", weight_decay)):
            if numbers is not None and (len(numbers) != copies or not all(0 <= n < float("inf") for n in numbers)):
                raise ValueError(f"{name} must be {copies} numbers of at least 0, one for each copy, got {numbers!r}")
        self.rates, self.weight_decay = rates, weight_decay
        self.dimensions = {id(p): dimension_of(model, name) for name, p in model.named_parameters()}
        """Parameter's id -> the dimension in which copies lie."""
        self._before: dict[int, Tensor] = {}

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold the numbers from the optimizer's next step on.

        Raises:
            ValueError: if the optimizer can't give copies their own.
        """
        if type(optimizer) not in PROPORTIONAL:
            raise ValueError(
                f"optimizer must be one of {', '.join(kind.__name__ for kind in PROPORTIONAL)}, whose steps are proportional "
                f"to the learning rate, got {type(optimizer).__name__}"
            )
        if self.weight_decay is not None and any(group.get("weight_decay") for group in optimizer.param_groups):
            raise ValueError(
                "weight_decay of copies takes the place of the optimizer's; make the optimizer with weight_decay=0"
            )
        if any(id(p) not in self.dimensions for group in optimizer.param_groups for p in group["params"]):
            raise ValueError("optimizer holds parameters that are not the copies'; make it of replicas.parameters()")
        optimizer.register_step_pre_hook(self.before_step)
        optimizer.register_step_post_hook(self.after_step)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Decay weights, or add the decay to their gradients; keep where they are."""
        for group, parameter in _parameters(optimizer):
            if parameter.grad is None:
                continue
            if self.rates is not None:
                self._before[id(parameter)] = parameter.detach().clone()
            if self.weight_decay is None:
                continue
            decay = self._own(self.weight_decay, parameter)
            if group.get("decoupled_weight_decay"):
                parameter.mul_(1 - group["lr"] * decay)
            else:
                parameter.grad.addcmul_(parameter, decay, value=-1 if group.get("maximize") else 1)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Stretch every copy's step by its factor: w <- w_before + rate (w - w_before)."""
        for _, parameter in _parameters(optimizer):
            before = self._before.pop(id(parameter), None)
            if before is not None and self.rates is not None:
                parameter.sub_(before).mul_(self._own(self.rates, parameter)).add_(before)

    def _own(self, numbers: Sequence[float], parameter: Tensor) -> Tensor:
        return spread(PerCopy(numbers, self.dimensions[id(parameter)]), parameter)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], nn.Parameter]]:
    """Every parameter, with the options of its group."""
    return ((group, parameter) for group in optimizer.param_groups for parameter in group["params"])
