"""Connections that don't exist, which are set to zero after each step.

Optimizers that treat every element on its own keep them there, since gradients are masked, but others (Muon), and gradients from
elsewhere (a penalty on weights), do not.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from apical.step_hooks import everywhere

if TYPE_CHECKING:
    from apical.learner import Learner

_learners: weakref.WeakSet[Learner] = weakref.WeakSet()
_masked: weakref.WeakKeyDictionary[Optimizer, tuple[int, list[tuple[weakref.ref[nn.Module], str]]]] = (
    weakref.WeakKeyDictionary()
)
"""For each optimizer, how many parameters it had, and the masked ones among them: who owns each, under which name."""


def watch(learner: Learner) -> None:
    """Keep the absent connections of `learner` at zero."""
    _learners.add(learner)
    _masked.clear()
    everywhere.after(_mask)


def like(mask: Tensor, tensor: Tensor) -> Tensor:
    """A mask that is whole on every process, in shards where the tensor is that it is to be multiplied with."""
    mesh = getattr(tensor, "device_mesh", None)
    if mesh is None:
        return mask
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(tensor, DTensor)
    return distribute_tensor(mask, mesh, tensor.placements, src_data_rank=None)


@torch.no_grad()
def _mask(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Set what the optimizer has moved to zero where its mask has a zero."""
    held = everywhere.count(optimizer)
    known = _masked.get(optimizer)
    if known is None or known[0] != held:
        known = _masked[optimizer] = (held, list(_masked_in(everywhere.ids(optimizer))))
    for reference, name in known[1]:
        owner = reference()
        mask = None if owner is None else owner._buffers.get(f"{name}_mask")
        parameter = None if owner is None else owner._parameters.get(name)
        if mask is not None and parameter is not None:
            parameter.mul_(like(mask, parameter))


def _masked_in(ids: set[int]) -> Iterator[tuple[weakref.ref[nn.Module], str]]:
    """Owner and name of every parameter among `ids` that has a mask."""
    for owner in [owner for learner in _learners for owner in learner.owners.values()]:
        for name in ("weight", "feedback"):
            if f"{name}_mask" in owner._buffers and id(owner._parameters.get(name)) in ids:
                yield weakref.ref(owner), name
