"""Several processes that learn together: how many there are, which one this is, and means over all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def together() -> bool:
    """Whether this process is one of a group that learns together (torch.distributed is initialized)."""
    return distributed.is_available() and distributed.is_initialized()


def world() -> int:
    """The number of processes that learn together."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """This process's number among those that learn together, from 0."""
    return distributed.get_rank() if together() else 0


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes, with one message for each dtype."""
    tensors = list(tensors)
    if (n := world()) == 1:
        return
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.flatten() for t in group])
        distributed.all_reduce(flat)
        flat /= n
        for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def everywhere(value: bool, device: torch.device) -> bool:
    """Whether `value` is true on all processes."""
    if world() == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, distributed.ReduceOp.MIN)
    return bool(flag)
