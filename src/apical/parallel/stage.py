"""One stage: its layers, the taps of its forward passes, and its backward pass from the output's error alone.

A tap hears e D, whatever lies behind it. So a stage's pass ends in a node with an edge to each of its taps (see
`apical.pathways.taps`), to which the error is given when it comes; the activity that goes on to the next stage needs no signal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.learner import Learner
from apical.parallel.splitting import Part


class Stage(nn.Module):
    """The layers of one stage, which learn from errors that come from elsewhere.

    Args:
        part: of the model. learner: of the whole model. output: the whole model's output for the example; None in the last stage,
            which has it itself.
    """

    def __init__(self, part: Part, learner: Learner, output: Tensor | None) -> None:
        super().__init__()
        self.layers = part.layers
        self.learner, self.ahead, self.output = learner, part.ahead, output
        self.waiting: list[Tensor] = []
        """Per microbatch, the tensor at which the output's error enters."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.layers(x)
        passes, entry = self.learner.passes, None
        for one in passes:
            one.begin(self, (x,))
        try:
            given: Tensor = self.layers(x)
            for synapse in self.ahead:
                synapse.pathway.enter(synapse, given)
            entry = given if self.output is None else self._place(given)
        finally:
            for one in passes:
                joined = one.end(self, (x,), entry)
                entry = entry if joined is None else joined
        assert entry is not None
        self.waiting.append(entry)
        # What is sent has no graph, and lies in one piece.
        return entry if self.output is None else given.detach().contiguous()

    def _place(self, given: Tensor) -> Tensor:
        """What stands for the output in a stage that does not make it."""
        assert self.output is not None
        return given.new_zeros((len(given), *self.output.shape[1:]), dtype=self.output.dtype)

    def learn(self, error: Tensor) -> None:
        """Make the gradients of all microbatches from the output's error [N, *outputs]."""
        waiting, self.waiting = self.waiting, []
        parts = error.split([len(one) for one in waiting])
        for one, part in zip(waiting, parts, strict=True):
            if one.requires_grad:
                one.backward(part)
