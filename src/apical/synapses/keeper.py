"""What a module that keeps feedback and masks does with them when it is saved, loaded, moved or emptied."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.synapses.storage import MASKS, kept, mask_feedback, names_kept, not_in_state

if TYPE_CHECKING:
    from apical.synapses.circuit import Circuit

_numbers = itertools.count()


class Keeper(nn.Module):
    """A module with weights that keeps feedback, and masks if it is sparse."""

    weight: nn.Parameter
    circuit: Circuit
    label: str
    sparse: bool = False

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        keeps = any(kept(self, name) is not None for name in (*names_kept(self), *MASKS))
        if keeps and not _carries_values(fn, self._parameters.get("weight")):
            self.circuit.emptied.add(self.label)
        return super()._apply(fn, recurse)

    @override
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in not_in_state(self):
            destination.pop(prefix + name, None)

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list,
        unexpected_keys: list,
        errors: list,
    ) -> None:
        """Take a state dict. That of a plain model carries no feedback and no masks: the synapse's own stay as they are."""
        masks = [name for name in MASKS if name in self._buffers] if self.sparse else []
        own = (*names_kept(self), *masks)
        dropped = {prefix + name for name in own if prefix + name in state_dict and kept(self, name) is None}
        taken = {key: value for key, value in state_dict.items() if key not in dropped} if dropped else state_dict
        missing: list[str] = []
        for name in masks:
            mask, given = self._buffers.get(name), state_dict.get(prefix + name)
            if mask is not None and given is not None and given.shape == mask.shape:
                # First, because feedback that is assigned is thinned at once.
                self._buffers[name] = given.to(mask, copy=True)
        super()._load_from_state_dict(taken, prefix, local_metadata, strict, missing, unexpected_keys, errors)
        missing_keys += [key for key in missing if key.removeprefix(prefix) not in own]
        if (mask := self._buffers.get("weight_mask")) is not None:
            with torch.no_grad():
                self.weight.mul_(mask)
        mask_feedback(self)
        held = {prefix + name for name in own if kept(self, name) is not None}
        if held <= state_dict.keys():
            self.circuit.emptied.discard(self.label)


def _carries_values(fn: Callable[[Tensor], Tensor], like: Tensor | None) -> bool:
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
