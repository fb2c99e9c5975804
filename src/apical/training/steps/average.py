"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from apical.learner import Learner


class Average:
    """The exponential moving average of a learner's forward weights, and of the statistics of its normalization layers.

    After step t it moves by 1 - d of the way to the weights, with d = min(decay, (1 + t) / (10 + t)), so that the initial weights
    are soon forgotten (as TensorFlow's ExponentialMovingAverage has it). Feedback is not averaged: it is for training.

    Args:
        learner: whose weights. decay: d, from 0 to 1.

    >>> import apical
    >>> net = torch.nn.Linear(2, 1)
    >>> average = Average(apical.attach(net, "bp"), 0.999)
    >>> with torch.no_grad():
    ...     before, _ = net.weight.clone(), net.weight.add_(1.0)
    >>> average.update()
    >>> with average.in_place():
    ...     net.weight - before
    tensor([[0.8182, 0.8182]], grad_fn=<SubBackward0>)
    """

    def __init__(self, learner: Learner, decay: float) -> None:
        self._learner, self._decay, self._steps = learner, decay, 0
        self._kept = {name: tensor.clone() for name, tensor in self._now().items()}

    def _now(self) -> dict[str, Tensor]:
        """What is averaged: entry of the model's state -> its present value, by reference."""
        model, owners = self._learner.model, self._learner.owners
        forward = set(map(id, self._learner.forward_parameters()))
        found = {name: one.detach() for name, one in model.named_parameters() if id(one) in forward}
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and name.rpartition(".")[0] not in owners:
                found[name] = buffer
        return found

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        share = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, value in self._now().items():
            self._kept[name].lerp_(value, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the place of the weights, which come back."""
        now = self._now()
        before = {name: value.clone() for name, value in now.items()}
        self._put(now, self._kept)
        try:
            yield
        finally:
            self._put(now, before)

    def settle(self) -> None:
        """Put the average in the place of the weights for good."""
        self._put(self._now(), self._kept)

    @torch.no_grad()
    def _put(self, now: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        for name, value in now.items():
            value.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self._steps, "weights": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave.

        Raises:
            ValueError: if it is of another network.
        """
        kept = state["weights"]
        if kept.keys() != self._kept.keys() or any(kept[name].shape != one.shape for name, one in self._kept.items()):
            raise ValueError("the average is of another network's weights")
        self._steps = int(state["steps"])
        self._put(self._kept, kept)
