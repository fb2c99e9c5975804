"""Where feedback weights and masks are kept: as tensors of the module that owns them, under names that its state dict then has.

The owner is a synapse, or a block named in ``at=``. A plasticity calls `keep`; what it has kept can be asked for, dropped,
taken out of use and taken away again without knowing the plasticity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MASKS = ("weight_mask", "feedback_mask")
"""Names of the buffers that say, in zeros and ones, which connections exist (see `apical.Connectivity`)."""

_NAMES = "apical_kept"
"""Under which attribute an owner lists what was kept on it."""

_RETIRED = "apical_retired"
"""Which attribute an owner has whose feedback is out of use."""


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
    """The tensor in use under `name` on its owner, parameter or buffer; None if there is none, or none any more.

    >>> kept(nn.Linear(2, 3), "feedback") is None
    True
    """
    if _RETIRED in vars(owner):
        return None
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


def retire(owner: nn.Module, *, buffers: bool) -> None:
    """Take out of use what was kept, once others may have listed the owner's parameters: each of those keeps its place.

    An average of the weights, or a vector of them, counts on the same parameters in the same order ever after.

    Args:
        owner: a synapse. buffers: whether buffers keep their places too; else they are let go of.
    """
    names = (*names_kept(owner), "feedback_mask")
    for name in names:
        parameter = owner._parameters.get(name)
        if parameter is not None:
            parameter.requires_grad_(False).grad = None
        if name in owner._buffers and not buffers:
            owner._buffers[name] = None
    if any(store.get(name) is not None for name in names for store in (owner._parameters, owner._buffers)):
        vars(owner)[_RETIRED] = True


def use_again(owner: nn.Module) -> None:
    """Take into use what the owner has, after `retire`."""
    vars(owner).pop(_RETIRED, None)


def not_in_state(owner: nn.Module) -> tuple[str, ...]:
    """Names of the tensors on the owner that its state dict leaves out, because they are out of use."""
    return (*names_kept(owner), "feedback_mask") if _RETIRED in vars(owner) else ()


def release(owner: nn.Module) -> None:
    """Take from the owner everything that was kept on it, masks included."""
    for name in (*names_kept(owner), *MASKS):
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
    for name in (_NAMES, _RETIRED):
        vars(owner).pop(name, None)


def multiply_unseen(tensor: Tensor, mask: Tensor) -> None:
    """Multiply in place, without a trace in autograd."""
    if torch._C._are_functorch_transforms_active():  # They have no .data.
        with torch.no_grad():
            tensor.mul_(mask)
    else:
        tensor.data.mul_(mask)


def mask_feedback(owner: nn.Module) -> None:
    """Set to zero what the owner's `feedback_mask` leaves out, in everything kept that has the feedback's shape."""
    mask = owner._buffers.get("feedback_mask")
    if mask is None:
        return
    for name in names_kept(owner):
        tensor = kept(owner, name)
        if tensor is not None and tensor.shape == mask.shape:
            multiply_unseen(tensor, mask)
