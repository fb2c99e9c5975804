"""Where feedback weights and masks are kept: as tensors of the module that owns them, under names that its state dict then has.

The owner is a synapse, or a block named in ``at=``. A plasticity calls `keep`; what it has kept can be asked for, dropped, and
taken away again without knowing the plasticity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MASKS = ("weight_mask", "feedback_mask")
"""Names of the buffers that say, in zeros and ones, which connections exist (see `apical.Connectivity`)."""

_NAMES = "apical_kept"
"""Under which attribute an owner lists what was kept on it."""


# Written to the dictionaries, not by register_buffer: on a synapse `feedback` is a property, which nn.Module takes for a clash.
def keep(owner: nn.Module, name: str, tensor: Tensor, *, trained: bool = False) -> None:
    """Store `tensor` on its owner as `owner.name`, in the owner's state dict too.

    Args:
        owner: a synapse or a block. name: "feedback", or another name for what feedback is computed from.
        tensor: the values. trained: as an `nn.Parameter` that the user's optimizer moves, instead of a buffer. It stands still
            as long as the owner's weights are frozen.

    >>> layer = nn.Linear(2, 3)
    >>> keep(layer, "feedback", torch.zeros(3, 2))
    >>> sorted(layer.state_dict())
    ['bias', 'feedback', 'weight']
    """
    if trained:
        weight = owner._parameters.get("weight")
        owner._parameters[name] = nn.Parameter(tensor, requires_grad=True if weight is None else weight.requires_grad)
    else:
        owner._buffers[name] = tensor
    names = vars(owner).setdefault(_NAMES, ())
    if name not in names:
        vars(owner)[_NAMES] = (*names, name)


def kept(owner: nn.Module, name: str) -> Tensor | None:
    """The tensor that is stored under `name` on its owner, parameter or buffer; None if there is none, or none any more.

    >>> kept(nn.Linear(2, 3), "feedback") is None
    True
    """
    tensor = owner._parameters.get(name)
    return owner._buffers.get(name) if tensor is None else tensor


def names_kept(owner: nn.Module) -> tuple[str, ...]:
    """Names of all that a plasticity has kept on the owner, dropped or not."""
    return vars(owner).get(_NAMES, ())


def complete(owner: nn.Module) -> bool:
    """Whether everything that was kept on the owner is still there."""
    return all(kept(owner, name) is not None for name in names_kept(owner))


def drop(owner: nn.Module) -> None:
    """Keep the names and let go of the tensors: no signal ever crosses this feedback."""
    for name in (*names_kept(owner), "feedback_mask"):
        stores: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
        for store in stores:
            if name in store:
                store[name] = None


def release(owner: nn.Module) -> None:
    """Take from the owner everything that was kept on it, masks included."""
    for name in (*names_kept(owner), *MASKS):
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
    vars(owner).pop(_NAMES, None)


def mask_feedback(owner: nn.Module) -> None:
    """Set to zero what the owner's `feedback_mask` leaves out, in everything kept that has the feedback's shape."""
    mask = owner._buffers.get("feedback_mask")
    if mask is None:
        return
    with torch.no_grad():
        for name in names_kept(owner):
            tensor = kept(owner, name)
            if tensor is not None and tensor.shape == mask.shape:
                tensor.mul_(mask)
