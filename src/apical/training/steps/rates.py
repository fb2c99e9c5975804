"""Learning rates step by step: the share of the scheduler's that warm-up and cool-down leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from apical.training.config import Recipe


class Rates:
    """The learning rates of an optimizer's groups in each step.

    A rate that is a tensor is set in place, so that a CUDA graph that was made with it goes by what it is set to.

    Args:
        config: with `warmup_epochs` and `cooldown_epochs`. optimizer: whose rates.

    Attributes:
        share: of the scheduler's rates that the present step has, at most 1.
    """

    def __init__(self, config: Recipe, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.share = optimizer, 1.0
        self._warmup, self._cooldown, self._epochs = config.warmup_epochs, config.cooldown_epochs, config.epochs

    def begin(self, step: int, per_epoch: int) -> None:
        """Begin a step, from 0, of so many in an epoch."""
        self.share = self._of(step, per_epoch)

    def after(self, steps: int, per_epoch: int) -> float:
        """The weights' rate after so many steps: the share that the last one had of the scheduler's present rate."""
        return float(self.optimizer.param_groups[0]["lr"]) * self._of(steps - 1, per_epoch)

    def _of(self, step: int, per_epoch: int) -> float:
        """The warm-up counts a step, and the cool-down does not, so that no step is without a rate."""
        grown = (step + 1) / per_epoch / self._warmup if self._warmup else 1.0
        left = (self._epochs - step / per_epoch) / self._cooldown if self._cooldown else 1.0
        return min(1.0, grown, left)

    @property
    def in_place(self) -> bool:
        """Whether all rates are tensors."""
        return all(isinstance(group["lr"], Tensor) for group in self.optimizer.param_groups)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While open, rates are the present share of what they are. Schedulers go by the whole."""
        if self.share == 1:
            yield
            return
        groups = self.optimizer.param_groups
        whole = [float(group["lr"]) for group in groups]
        self._set([rate * self.share for rate in whole])
        try:
            yield
        finally:
            self._set(whole)

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load the optimizer's state. A rate that was a tensor is one on the device again, where a graph reads it."""
        moving = self.in_place
        self.optimizer.load_state_dict(dict(state))
        for group in self.optimizer.param_groups if moving else ():
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)


def for_graphs(options: Mapping[str, Any], kind: type[torch.optim.Optimizer], device: torch.device) -> dict[str, Any]:
    """An optimizer's options with a rate that a graph reads anew in every step: of SGD, unless its implementation was chosen.

    >>> for_graphs({"lr": 0.5}, torch.optim.SGD, torch.device("cpu"))
    {'lr': tensor(0.5000), 'fused': True}
    """
    if kind is not torch.optim.SGD or {"fused", "foreach", "differentiable"} & set(options):
        return dict(options)
    return {**options, "lr": torch.tensor(float(options["lr"]), device=device), "fused": True}
