"""Products of a step's microbatches, made at once: delta^T x of all rows costs less than those of a few rows each, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apical.optim.ownership import claimed
from apical.pathways import Direct
from apical.synapses.synapse import Synapse


class Products:
    """What takes the factors of weights' gradients in the backward passes of microbatches; an updater of the learner's circuit.

    Where a synapse's product is one of rows, its factors wait for `make`; of all others autograd makes gradients.
    """

    meant = True

    def __init__(self) -> None:
        self._waiting: dict[Synapse, list[tuple[Tensor, Tensor]]] = {}
        self._memory: dict[Synapse, Tensor] = {}

    @property
    def updates(self) -> Products:
        """Who takes updates, as nodes in C++ ask."""
        return self

    def see(self, x: Tensor) -> None:
        """An input by which a signal leaves."""

    def expect(self, synapse: Synapse, x: Tensor | None, learns: bool) -> Products | None:
        """This, where the synapse's product may wait."""
        if not (learns and synapse.fuses) or synapse.sparse or claimed([synapse.weight]):
            return None
        moves_along = "feedback" in synapse._parameters and not isinstance(synapse.pathway, Direct)
        return None if moves_along else self

    def owner(self, node: Any) -> Products:
        """Who takes the update of a node."""
        return self

    def claim(self, synapse: Synapse, asked: bool) -> bool:
        """Whether the update is taken, as nodes in C++ ask."""
        return True

    def take(
        self, synapse: Synapse, x: Tensor, delta: Tensor, product: Tensor | None, bias: Tensor | None, feedback: bool
    ) -> Tensor | None:
        """One call's factors, or their product where it is made already; the bias's gradient goes the ordinary way."""
        if product is None:
            self._waiting.setdefault(synapse, []).append((delta, x))
        else:
            _add(synapse.weight, product)
        return bias

    @torch.no_grad()
    def make(self) -> None:
        """Make the gradients of all that waits."""
        waiting, self._waiting = self._waiting, {}
        for synapse, factors in waiting.items():
            deltas, xs = zip(*factors, strict=True)
            delta, x = _rows(deltas), _rows(xs)
            if synapse.weight.grad is None:
                memory = self._memory.get(synapse)
                if memory is None:
                    memory = self._memory[synapse] = torch.empty_like(synapse.weight)
                synapse.add_hebbian(memory, x, delta, 0.0, 1.0)
                synapse.weight.grad = memory
            else:
                synapse.add_hebbian(synapse.weight.grad, x, delta, 1.0, 1.0)

    def drop(self) -> None:
        """Let go of what waits."""
        self._waiting = {}

    def settle(self) -> None:
        """Nothing here depends on which synapses there are."""


def _rows(parts: Sequence[Tensor]) -> Tensor:
    """Matrices below one another; without a copy where they lie so already, as the pieces of the model's own batch do."""
    first, rows = parts[0], 0
    memory = first.untyped_storage().data_ptr()
    for part in parts:
        place = first.storage_offset() + rows * first.stride(0)
        if (part.untyped_storage().data_ptr(), part.storage_offset(), part.stride()) != (memory, place, first.stride()):
            return torch.cat(tuple(parts))
        rows += len(part)
    return first.as_strided((rows, first.shape[1]), first.stride())


def _add(parameter: nn.Parameter, product: Tensor) -> None:
    parameter.grad = product if parameter.grad is None else parameter.grad.add_(product)
