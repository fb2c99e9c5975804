"""Learning rates and weight decay for each copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apical.per_copy import PerCopy, spread

PROPORTIONAL: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
)  # fmt: skip
"""Optimizers that treat every entry on its own, with steps proportional to the learning rate."""


def tune(
    optimizer: torch.optim.Optimizer,
    dimensions: Mapping[int, int],
    copies: int,
    rates: Sequence[float] | None,
    weight_decay: Sequence[float] | None,
) -> None:
    """See `Replicas.tune`; `dimensions` says by its id in which dimension of a parameter the copies lie."""
    if type(optimizer) not in PROPORTIONAL:
        raise ValueError(
            f"optimizer must be one of {', '.join(kind.__name__ for kind in PROPORTIONAL)}, whose steps are proportional to "
            f"the learning rate, got {type(optimizer).__name__}"
        )
    for name, numbers in (("rates", rates), ("weight_decay", weight_decay)):
        if numbers is not None and (len(numbers) != copies or not all(0 <= n < float("inf") for n in numbers)):
            raise ValueError(f"{name} must be {copies} numbers of at least 0, one for each copy, got {numbers!r}")
    if weight_decay is not None and any(group.get("weight_decay") for group in optimizer.param_groups):
        raise ValueError(
            "weight_decay of copies takes the place of the optimizer's; make the optimizer with weight_decay=0"
        )
    if any(id(p) not in dimensions for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer holds parameters that are not the copies'; make it of replicas.parameters()")
    before: dict[int, Tensor] = {}

    def own(numbers: Sequence[float], parameter: Tensor) -> Tensor:
        return spread(PerCopy(numbers, dimensions[id(parameter)]), parameter)

    @torch.no_grad()
    def start(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepping.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if rates is not None:
                    before[id(parameter)] = parameter.detach().clone()
                if weight_decay is not None and group.get("decoupled_weight_decay"):
                    parameter.mul_(1 - group["lr"] * own(weight_decay, parameter))
                elif weight_decay is not None:
                    sign = -1 if group.get("maximize") else 1
                    parameter.grad.addcmul_(parameter, own(weight_decay, parameter), value=sign)

    @torch.no_grad()
    def end(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepping.param_groups:
            for parameter in group["params"]:
                old = before.pop(id(parameter), None)
                if old is not None and rates is not None:
                    parameter.sub_(old).mul_(own(rates, parameter)).add_(old)

    optimizer.register_step_pre_hook(start)
    optimizer.register_step_post_hook(end)
