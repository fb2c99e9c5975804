"""How networks lie in a model: one alone, or copies side by side in its channels.

What a phase has to know of copies stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from apical.losses import check_losses
from apical.nested import over_tensors

if TYPE_CHECKING:
    from apical.learner import Learner

Criterion = Callable[[Any, Any], Tensor]
"""criterion(outputs, targets) -> losses [N], one per sample."""


class OneNetwork:
    """A network alone: its batches [N, *] and losses [N] are taken as they are."""

    def fold(self, inputs: Any) -> Any:
        """`inputs` as the model takes them: the same."""
        return inputs

    def judge(self, criterion: Criterion, outputs: Tensor, targets: Any) -> Tensor:
        """Losses [N] of the outputs [N, *].

        Raises:
            ValueError: if the criterion does not give one loss per sample.
        """
        return check_losses(criterion(outputs, targets), outputs)


@dataclass(frozen=True)
class SideBySide:
    """Networks side by side in the channels of one model: their batches [n, N, C, *] pass as one, [N, n C, *], copy after copy.

    >>> import torch
    >>> x = torch.randn(3, 8, 4)
    >>> SideBySide(3).fold(x).shape
    torch.Size([8, 12])
    >>> torch.equal(SideBySide(3).apart(SideBySide(3).fold(x)), x)
    True
    """

    copies: int

    def fold(self, inputs: Any) -> Any:
        """Batches [n, N, C, *] as the model takes them: [N, n C, *], for a tensor or every tensor of a sequence or dict.

        Raises:
            ValueError: if copies do not come first in a tensor.
        """
        return over_tensors(inputs, self._together)

    def _together(self, x: Tensor) -> Tensor:
        if x.dim() < 3 or x.shape[0] != self.copies:
            raise ValueError(
                f"input must be [copies, N, features, ...] with {self.copies} copies first, got shape {list(x.shape)}; "
                f"x.expand({self.copies}, *x.shape) shows one batch to all"
            )
        # Anew each time: nothing tells whether the same tensor still holds the same batch (a loader may refill its memory).
        return x.transpose(0, 1).flatten(1, 2)

    def apart(self, outputs: Any) -> Any:
        """Each copy's share of what the model returned: [N, n C, *] -> [n, N, C, *]; a view.

        Raises:
            ValueError: if copies do not lie in dimension 1 of a tensor.
        """
        return over_tensors(outputs, self._unfold)

    def _unfold(self, y: Tensor) -> Tensor:
        if y.dim() < 2 or y.shape[1] % self.copies:
            raise ValueError(
                f"the output has shape {list(y.shape)}, in which {self.copies} copies do not lie side by side; replicas need "
                "a network that returns [N, outputs, ...]"
            )
        return y.unflatten(1, (self.copies, -1)).transpose(0, 1)

    def judge(self, criterion: Criterion, outputs: Tensor, targets: Any) -> Tensor:
        """Losses [N, n] of the outputs [N, n C] and targets [n, N, *]; [N] for one copy.

        The criterion sees the samples of all copies, copy after copy, as one batch [n N, C].

        Raises:
            ValueError: if the criterion does not give one loss per sample.
        """
        samples = self._unfold(outputs).flatten(0, 1)
        losses = check_losses(criterion(samples, over_tensors(targets, lambda y: y.flatten(0, 1))), samples)
        return losses if self.copies == 1 else losses.view(self.copies, -1).t()


Layout = OneNetwork | SideBySide


@contextmanager
def as_one_network(learner: Learner) -> Iterator[None]:
    """While open, the learner's only copy is asked as the network that it is, with batches [N, *].

    Raises:
        ValueError: if several copies lie side by side in its model.
    """
    if learner.copies > 1:
        raise ValueError(
            "angles and audits are those of one network, and these are copies side by side; take them apart with "
            "replicas.split() and ask apical.learner_of(copy)"
        )
    layout, learner.layout = learner.layout, OneNetwork()
    try:
        yield
    finally:
        learner.layout = layout
