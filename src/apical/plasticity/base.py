"""What every plasticity answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from apical.phases.phase import Phase


@dataclass(frozen=True)
class Plasticity:
    """How feedback weights come to be. A value without state: what it stores, it stores on the module that owns the feedback.

    The owner is a synapse, or a block named in ``at=``. Fields are the rule's hyperparameters.
    """

    name: ClassVar[str]
    pathways: ClassVar[frozenset[str]]
    """Names of the pathways this plasticity makes sense with."""
    names: ClassVar[tuple[str, ...]] = ("feedback",)
    """Names under which tensors are stored on the owner, and so in its state dict."""
    trainable: ClassVar[bool] = False
    """Whether the stored feedback is an `nn.Parameter` that the user's optimizer moves."""
    computes: ClassVar[bool] = False
    """Whether `resolve` computes anything."""
    redraws: ClassVar[bool] = False
    """Whether `redraw` is to be called before every forward pass of the whole model."""
    adapts: ClassVar[bool] = False
    """Whether the feedback learns in a phase of its own, `adapt`; then `warmup` counts calls before weights may move."""
    listens: ClassVar[bool] = False
    """Whether that phase wants to know what went through the synapses in the pass before."""
    thins: ClassVar[bool] = True
    """Whether it can learn feedback of which some elements are absent (see `Connectivity`)."""
    replicates: ClassVar[bool] = False
    """Whether a phase that listens knows copies of a network side by side apart (see `apical.replicate`)."""
    broadcasts: ClassVar[str] = ""
    """What that phase sends to every synapse alike, in words."""

    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        """Store what this plasticity keeps for feedback of `shape` on `owner`. The default keeps nothing."""

    def keeps(self, owner: nn.Module) -> Tensor | None:
        """What a forward pass keeps for its backward: the feedback weights, or what they are computed from."""
        raise NotImplementedError

    def resolve(self, owner: nn.Module, kept: Tensor, out: Tensor | None = None) -> Tensor:
        """The feedback weights, from what was kept; written to `out` where they are computed at all."""
        return kept

    def resolved(self, owner: nn.Module, kept: Tensor, out: Tensor | None = None) -> Tensor:
        """What `resolve` gives, without connections that don't exist."""
        found = self.resolve(owner, kept, out)
        mask = owner._buffers.get("feedback_mask") if self.computes else None
        return found if mask is None else torch.mul(found, mask, out=out)

    def gain(self, owner: nn.Module) -> float:
        """A factor of the feedback that `resolve` leaves out, because it is cheaper to apply to the signal."""
        return 1.0

    def weight(self, owner: nn.Module) -> Tensor | None:
        """The feedback weights that a backward pass built now will use."""
        kept = self.keeps(owner)
        if kept is None or not self.computes:
            return kept
        found, gain = self.resolved(owner, kept), self.gain(owner)
        return found if gain == 1 else found * gain

    def available(self, owner: nn.Module) -> bool:
        """Whether everything `prepare` stored is still there."""
        return all(
            owner._parameters.get(name) is not None or owner._buffers.get(name) is not None for name in self.names
        )

    def store(self, owner: nn.Module, value: Tensor) -> None:
        """Take `value` as feedback weights, where they are stored at all."""
        raise ValueError(f"feedback of plasticity '{self.name}' is computed from the weights; it can't be set")

    def increment(self, product: Tensor | None) -> Tensor | None:
        """Gradient of trainable feedback, given the Hebbian product of its synapse."""
        return None

    def redraw(self, owner: nn.Module, generator: torch.Generator) -> None:
        """Draw anew what changes with every batch."""

    def thin(self, owner: nn.Module) -> None:
        """Set to zero what the owner's `feedback_mask` leaves out, in everything stored that has the feedback's shape."""
        mask = owner._buffers.get("feedback_mask")
        if mask is not None:
            with torch.no_grad():
                for stored in (store.get(name) for name in self.names for store in (owner._parameters, owner._buffers)):
                    if stored is not None and stored.shape == mask.shape:
                        stored.mul_(mask)

    def check(self, owner: nn.Module, name: str, shape: torch.Size) -> None:
        """Raise a ValueError if feedback of `shape` can't be had on `owner`, before anything is stored."""

    def adapt(self, phase: Phase) -> None:
        """Let the feedback at ``phase.sites`` learn."""
        raise NotImplementedError

    def release(self, owner: nn.Module) -> None:
        """Remove from `owner` everything `prepare` stored."""
        for name in self.names:
            owner._parameters.pop(name, None)
            owner._buffers.pop(name, None)
            owner._non_persistent_buffers_set.discard(name)

    def forget(self, owner: nn.Module) -> None:
        """Keep the names, drop the tensors: no signal ever crosses this feedback."""
        for name in self.names:
            for store in (owner._parameters, owner._buffers):
                if name in store:
                    store[name] = None


# Written to the dictionaries, not by register_buffer: on a synapse `feedback` is a property, which nn.Module takes for a clash.
def keep_buffer(owner: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    """Store `tensor` as a buffer of `owner`."""
    owner._buffers[name] = tensor
    if not persistent:
        owner._non_persistent_buffers_set.add(name)


def keep_parameter(owner: nn.Module, name: str, tensor: Tensor, *, requires_grad: bool) -> None:
    """Store `tensor` as a parameter of `owner`."""
    owner._parameters[name] = nn.Parameter(tensor, requires_grad=requires_grad)
