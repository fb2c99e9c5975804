"""A captured step: its graph, what that was made for, and what Python does for each of its replays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from apical.cuda_graphs.seen import Seen
from apical.cuda_graphs.standing import Standing
from apical.learner import Learner
from apical.per_copy import Streams

if TYPE_CHECKING:
    from apical.pathways.subspace import Subspace

Noise = list[tuple[Learner, list[list[torch.Generator]]]]
"""Learner -> the generators of each of its phases in one step."""

Follows = list[tuple["Subspace", int]]
"""Subspaces that turn every few backward passes, with how many of these there are in one step."""


class Graph:
    """A graph with what it was made for, what its replays return, and what Python does for each of them.

    Args:
        noise: learner -> the generators of each of its phases. grads: of the parameters when the step began.
        follows: what counts backward passes.
    """

    def __init__(
        self,
        seen: Seen,
        standing: Standing,
        replay: Callable[[], None],
        result: Any,
        noise: Noise,
        grads: list[Tensor | None],
        follows: Follows,
    ) -> None:
        self.standing, self.replays, self._follows = standing, 0, follows
        self._seen, self._replay, self._result, self._noise = seen, replay, result, noise
        now = [(p, before, p.grad) for p, before in zip(seen.parameters, grads, strict=True)]
        # Where the step drops what lies there, it may be anything; else it has to be what the graph adds to.
        self._met = [(p, before) for p, before, after in now if before is None or before is after]
        self._left = [(p, after) for p, _, after in now if after is not None]

    def holds(self, standing: Standing) -> bool:
        """Whether it does what the step would do now.

        Raises:
            RuntimeError: if a learner's model was changed, as the step would raise it.
        """
        for circuit in self._seen.circuits:
            circuit.look()
        return standing.same(self.standing) and self._meets()

    def stands_but_for_options(self, standing: Standing) -> bool:
        """Whether nothing but optimizers' options has changed."""
        own = self.standing
        return own.same_tensors(standing) and own.modes == standing.modes and self._meets()

    def _meets(self) -> bool:
        return all(p.grad is before for p, before in self._met)

    def told(self, standing: Standing) -> str:
        """What is other than it was, in words."""
        if not standing.same_options(self.standing):
            return "the optimizer's options (learning rate)"
        return "modes of modules" if standing.modes != self.standing.modes else "parameters, buffers or gradients"

    def first(self) -> Any:
        """The step that was captured, of which Python has done its part."""
        self._replay()
        self.replays = 1
        return self._result

    def replay(self) -> Any:
        """One more step."""
        sow(self._noise)
        self._replay()
        self.replays += 1
        for learner, phases in self._noise:
            learner.phases.adapted += len(phases)
        for one, passes in self._follows:
            one.passes += passes
        for parameter, grad in self._left:
            parameter.grad = grad
        return self._result


def generators(learner: Learner) -> list[torch.Generator]:
    """Generators for one phase of a learner."""
    device = next(learner.model.parameters()).device
    copies = len(learner.generator.own) if isinstance(learner.generator, Streams) else 1
    return [torch.Generator(device) for _ in range(copies)]


def sow(noise: Noise) -> None:
    """Seed the generators of all phases of a step from their learners', as the step would."""
    for learner, phases in noise:
        for generators in phases:
            for generator, seed in zip(generators, learner.phases.seeds(), strict=True):
                generator.manual_seed(seed)


def apart(result: Any) -> Any:
    """What a step has returned, as tensors that no later step changes."""
    if isinstance(result, Tensor):
        return result.detach().clone()
    return trees.tree_map(lambda one: one.detach().clone() if isinstance(one, Tensor) else one, result)
