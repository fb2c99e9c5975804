"""Where feedback weights and masks are kept: as tensors of the module that owns them, under names that its state dict then has.

The owner is a synapse, or a block named in ``at=``. A plasticity calls `keep`; what it has kept can be asked for, dropped,
taken out of use and taken away again without knowing the plasticity. A `Keeper` knows what becomes of it when the module is
saved, loaded, moved or emptied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.distributed import in_shards
from apical.step_hooks.masks import like
from apical.synapses.memory import carries_values, laid_out_as
from apical.synapses.transformed import transforming

if TYPE_CHECKING:
    from apical.synapses.circuit import Circuit

MASKS = ("weight_mask", "feedback_mask")
"""Names of the buffers that say, in zeros and ones, which connections exist (see `apical.Connectivity`)."""

CURRENT = "current_weight"
"""Under which attribute a synapse whose weights are computed has those of the newest pass."""

PROJECTION = "feedback_projection"
"""Name of the buffer that holds P [outputs, rank] of direct feedback P Q."""

SEED = "feedback_seed"
"""Name of the buffer that holds the seed of feedback of which nothing else is kept."""

_FORM = "apical_form"
"""Under which attribute an owner of direct feedback has how it is kept, where that is not in full."""

_NAMES = "apical_kept"
"""Under which attribute an owner lists what was kept on it."""

_RETIRED = "apical_retired"
"""Which attribute an owner has whose feedback is out of use."""


# Written to the dictionaries, not by register_buffer: on a synapse `feedback` is a property, which nn.Module takes for a clash.
def keep(owner: nn.Module, name: str, tensor: Tensor, *, trained: bool = False) -> None:
    """Store `tensor` on its owner as `owner.name`, in the owner's state dict too.

    Args:
        owner: a synapse or a block. name: "feedback", or another name for what feedback is computed from. tensor: the values.
        trained: as a parameter that the user's optimizer moves, instead of a buffer. It stands still while the weights do.

    >>> layer = nn.Linear(2, 3)
    >>> keep(layer, "feedback", torch.zeros(3, 2))
    >>> sorted(layer.state_dict())
    ['bias', 'feedback', 'weight']
    """
    weight = weight_of(owner)
    tensor = laid_out_as(weight, tensor)
    if trained:
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


def weight_of(owner: nn.Module) -> Tensor | None:
    """The weights of an owner as they are, or, where every pass computes them anew, as the newest pass had them."""
    current = vars(owner).get(CURRENT)
    return owner._parameters.get("weight") if current is None else current


def form_of(owner: nn.Module) -> Any:
    """The `apical.pathways.factored.form.Form` of the owner's direct feedback; None where it is kept in full, and elsewhere."""
    return vars(owner).get(_FORM)


def shape_by(owner: nn.Module, form: Any) -> None:
    """Keep direct feedback of an owner in a form."""
    vars(owner)[_FORM] = form


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


def retire(owner: nn.Module, *, copied: bool) -> None:
    """Take out of use what was kept, once others may have listed the owner's parameters: each of those keeps its place.

    An average of a model, or a vector of its parameters, counts on the same ones in the same order ever after.

    Args:
        owner: a synapse. copied: whether copies of it were made, as for an average, which may count on buffers as well; else
            those are let go of.
    """
    names = (*names_kept(owner), "feedback_mask")
    for name in names:
        parameter = owner._parameters.get(name)
        if parameter is not None:
            parameter.requires_grad_(False).grad = None
        if name in owner._buffers and not copied:
            owner._buffers[name] = None
    if any(store.get(name) is not None for name in names for store in (owner._parameters, owner._buffers)):
        vars(owner)[_RETIRED] = True


def use_again(owner: nn.Module) -> None:
    """Take into use what the owner has, after `retire`."""
    vars(owner).pop(_RETIRED, None)


def release(owner: nn.Module) -> None:
    """Take from the owner everything that was kept on it, masks included."""
    for name in (*names_kept(owner), *MASKS):
        if name in MASKS and name.replace("_mask", "_orig") in owner._parameters:
            continue  # A mask of torch.nn.utils.prune, which has the same name.
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
    for name in (_FORM, _NAMES, _RETIRED):
        vars(owner).pop(name, None)


def sharding(owner: nn.Module, name: str, value: Any) -> bool:
    """Whether `value` takes a parameter's place on its owner because fully_shard puts its shards and its whole there by turns."""
    now = owner._parameters.get(name)
    return now is not None and isinstance(value, nn.Parameter) and (in_shards(value) or in_shards(now))


def make_alike(owner: nn.Module) -> None:
    """Give all processes that hold shards of the owner's weights the feedback and masks of the first one.

    DistributedDataParallel does so with all buffers, fully_shard with none.
    """
    mesh = getattr(owner._parameters.get("weight"), "device_mesh", None)
    for group in () if mesh is None else mesh.get_all_groups():
        for name in (*names_kept(owner), *MASKS):
            tensor = owner._buffers.get(name)
            if tensor is not None and not tensor.is_meta:
                torch.distributed.broadcast(tensor, group=group, group_src=0)


def check_mask(owner: nn.Module, name: str, value: Any) -> None:
    """Raise a ValueError if `value` can't take the place of one of the owner's masks."""
    held = owner._buffers.get(name)
    if held is not None and getattr(value, "shape", None) != held.shape:
        got = list(value.shape) if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{name} has shape {list(held.shape)}, one number for every connection; got {got}")


def _multiply_unseen(tensor: Tensor, mask: Tensor) -> None:
    """Multiply in place, without a trace in autograd. Function transforms allow of no such thing."""
    if not torch._C._are_functorch_transforms_active():
        tensor.data.mul_(like(mask, tensor))


def mask_feedback(owner: nn.Module) -> None:
    """Set to zero what the owner's `feedback_mask` leaves out, in all kept that has its shape and is of connections."""
    mask = owner._buffers.get("feedback_mask")
    if mask is None:
        return
    for name in names_kept(owner):
        tensor = kept(owner, name)
        if tensor is not None and tensor.shape == mask.shape and name not in ("projection", "covariance"):
            _multiply_unseen(tensor, mask)


class Keeper(nn.Module):
    """A module with weights that keeps feedback, and masks if it is sparse."""

    weight: nn.Parameter
    circuit: Circuit
    label: str
    sparse: bool = False

    def disconnect(self) -> Tensor | None:
        """Set to zero what lies at absent connections, whoever has written it there since the last pass.

        Unseen by autograd: what passes before have kept has zeros there already. Exported code has weights of its own.

        Returns:
            Under a function transform, where nothing may be changed in place, the weights to be used instead.
        """
        if torch.compiler.is_exporting():
            return None
        weight, mask = self._parameters.get("weight"), self._buffers.get("weight_mask")
        if transforming():
            return None if weight is None or mask is None else weight * mask
        if weight is not None and mask is not None:
            _multiply_unseen(weight, mask)
        mask_feedback(self)
        return None

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        keeps = any(kept(self, name) is not None for name in (*names_kept(self), *MASKS))
        if keeps and not carries_values(fn, self._parameters.get("weight")):
            self.circuit.lost(self.label)
        return super()._apply(fn, recurse)

    @override
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if _RETIRED in vars(self):
            for name in (*names_kept(self), "feedback_mask"):
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
                self.weight.mul_(like(mask, self.weight))
        mask_feedback(self)
        held = {prefix + name for name in own if kept(self, name) is not None}
        if held <= state_dict.keys():
            self.circuit.emptied.discard(self.label)


def refuse_computed(synapse: Any) -> None:
    """Raise a RuntimeError if weight or bias is a parameter no longer."""
    if synapse.computed:
        return
    for name in ("weight", "bias"):
        if name not in synapse._parameters and isinstance(getattr(synapse, name, None), Tensor):
            raise RuntimeError(
                f"the {name} of '{synapse.label}' is a parameter no longer: pruning, weight normalization or another "
                "parametrization that was put on it after attach computes it anew for every forward pass, where no "
                "rule can learn; take that off again by torch.nn.utils.parametrize.remove_parametrizations(layer, "
                f"'{name}') or torch.nn.utils.prune.remove (for sparse weights, attach with connectivity=...)"
            )


def check_feedback(label: str, value: Any, current: Tensor | None) -> None:
    """Raise an error if `value` can't take the place of a synapse's feedback."""
    if current is None:
        raise ValueError(f"synapse '{label}' has no feedback weights to set: no teaching signal leaves it")
    if not isinstance(value, Tensor):
        raise TypeError(f"feedback of '{label}' must be a tensor, got {value!r}")
    if value.shape != current.shape:
        raise ValueError(f"feedback of '{label}' has shape {list(current.shape)}, got {list(value.shape)}")
    if in_shards(current) and not in_shards(value):
        raise ValueError(
            f"feedback of '{label}' lies in shards, and a whole tensor was given; set it before fully_shard, or give "
            "torch.distributed.tensor.distribute_tensor(value, feedback.device_mesh, feedback.placements)"
        )
    if in_shards(value) and not in_shards(current):
        raise ValueError(
            f"feedback of '{label}' is whole on every process, and shards were given; give value.full_tensor()"
        )
