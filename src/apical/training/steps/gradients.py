"""Gradients of a step: of a batch in parts, and no longer than they may be."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from apical.learner import Learner


def parts(x: Tensor, y: Tensor, most: int, smallest: int, dim: int = 0) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """A batch in at most so many nearly equal parts along `dim`, each with whether it is the last.

    smallest: samples of the smallest share that a process has of the batch. All processes take as many parts, none of them empty
        but where the share itself is.

    >>> import torch
    >>> [(len(y), last) for x, y, last in parts(torch.zeros(5, 3), torch.zeros(5), most=2, smallest=5)]
    [(3, False), (2, True)]
    """
    count = max(1, min(most, smallest))
    if count == 1:
        yield x, y, True
        return
    pairs = zip(x.tensor_split(count, dim), y.tensor_split(count, dim), strict=True)
    yield from ((a, b, number == count) for number, (a, b) in enumerate(pairs, 1))


class Clip:
    """Shortens a learner's gradients where their norm is beyond `most`.

    The norm is that of all forward weights' gradients together, so that it means the same under every rule; gradients of feedback
    that learns with them shrink by the same factor, so that both go on moving alike (Kolen-Pollack).

    >>> import apical, torch
    >>> net = torch.nn.Linear(2, 1)
    >>> learner = apical.attach(net, "bp")
    >>> net(torch.full((1, 2), 10.0)).sum().backward()
    >>> Clip(learner, 1.0).shorten()
    >>> round(float(net.weight.grad.square().sum() + net.bias.grad.square().sum()), 4)
    1.0
    """

    def __init__(self, learner: Learner, most: float) -> None:
        self._learner, self._most = learner, most

    def shorten(self) -> None:
        """Shorten them, in place."""
        norm = get_total_norm([one.grad for one in self._learner.forward_parameters() if one.grad is not None])
        clip_grads_with_norm_(self._learner.model.parameters(), self._most, norm)
