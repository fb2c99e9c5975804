"""Memory: its format, and blocks for large results of a backward pass, used again once nobody holds them.

A C library gives large blocks back to the system at once, so every step would touch fresh pages; on a CPU that costs about
as much as the sums that fill them. Held here, a block serves the next step, provided that its last user has let go of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apical.noise import channels_last

SMALLEST = 1 << 24
"""Bytes below which the C library's own reuse does as well."""
BLOCKS = 2
"""Per name: while a gradient holds one, a phase of its own may ask for another."""


class Recycler:
    """Blocks of memory by name."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_blocks": {}}

    def take(self, name: str, like: Tensor) -> Tensor | None:
        """A contiguous tensor of `like`'s shape, dtype and device with unspecified values; None where reuse doesn't pay."""
        if like.device.type != "cpu" or like.numel() * like.element_size() < SMALLEST or torch.compiler.is_compiling():
            return None
        blocks = self._blocks.setdefault(name, [])
        blocks[:] = [block for block in blocks if block.shape == like.shape and block.dtype == like.dtype]
        block = next((block for block in blocks if not in_use(block)), None)
        if block is None:
            block = torch.empty(like.shape, dtype=like.dtype)
            blocks[:] = [*blocks[1 - BLOCKS :], block]
        # An alias: who holds it, or a view of it, keeps the storage's count up.
        return block.detach()


def laid_out_as(weight: Tensor | None, tensor: Tensor) -> Tensor:
    """The tensor in the weights' memory format, if it has their shape: kernels and optimizers else turn one round every time."""
    if weight is None or weight.shape != tensor.shape or not channels_last(weight):
        return tensor
    return torch.empty_like(weight, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def in_use(block: Tensor) -> bool:
    """Whether anything but this tensor holds its memory."""
    storage = block.untyped_storage()
    # One count is the tensor's, one this function's.
    return torch._C._storage_Use_Count(storage._cdata) > 2


_numbers = itertools.count()


def carries_values(fn: Callable[[Tensor], Tensor], like: Tensor | None) -> bool:
    """Whether what a model applies to all its tensors carries their values over, as a move or a cast does.

    `nn.Module.to_empty` does not. A number that was never asked before tells, as fresh memory may hold those of old.
    """
    if like is None:
        return True
    probe = torch.full((8,), 0.5 + next(_numbers) % 61 / 128, dtype=like.dtype, device=like.device)
    with torch.no_grad():
        moved = fn(probe)
    if moved.is_meta or probe.is_meta:
        return False
    return bool(((moved.cpu().float() - probe.cpu().float()).abs() < 0.003).all())
