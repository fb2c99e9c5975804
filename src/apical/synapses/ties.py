"""Weights that several synapses hold.

They share their masks, and feedback that learns with the weights: the gradient of shared weights is the sum of all their
synapses' products, and feedback that is to follow them (Kolen-Pollack's law) has to get that sum as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from apical.synapses.storage import kept, use_again

if TYPE_CHECKING:
    from apical.synapses.synapse import Synapse


def settle_ties(synapse: Synapse, others: Iterable[Synapse]) -> None:
    """Let the synapse share with those of `others` that hold its weights, and with nobody else."""
    weight = synapse._parameters.get("weight")
    if weight is None:
        return
    others = [other for other in others if other is not synapse]
    tied = [other for other in others if other._parameters.get("weight") is weight]
    if tied:
        masked = next((one for one in (*tied, synapse) if "weight_mask" in one._buffers), synapse)
        for one in (synapse, *tied):
            _share(masked, one, "weight_mask")
    if not _follows_weights(synapse):
        return
    alike = [other for other in others if _follows_weights(other) and other.plasticity == synapse.plasticity]
    tied = [other for other in alike if other in tied]
    source = next((one for one in (*tied, synapse) if kept(one, "feedback") is not None), None)
    own = synapse._parameters.get("feedback")
    if tied and source is not None:
        for one in (synapse, *tied):
            one._parameters["feedback"] = source._parameters["feedback"]
            _share(source, one, "feedback_mask")
            one.sends_back = True
            use_again(one)
    elif own is not None and any(other._parameters.get("feedback") is own for other in alike):
        synapse._parameters["feedback"] = nn.Parameter(own.detach().clone(), requires_grad=own.requires_grad)


def feedback_is_shared(synapse: Synapse, others: Iterable[Synapse]) -> bool:
    """Whether another synapse has the very feedback of this one."""
    own = synapse._parameters.get("feedback")
    return own is not None and any(one is not synapse and one._parameters.get("feedback") is own for one in others)


def _follows_weights(synapse: Synapse) -> bool:
    return synapse.connection.increment is not None and synapse.pathway.name == "layer-wise"


def _share(source: Synapse, synapse: Synapse, name: str) -> None:
    """Give the synapse the mask of another, or none as that one has none."""
    mask = source._buffers.get(name)
    if mask is not None:
        synapse._buffers[name] = mask
    else:
        synapse._buffers.pop(name, None)
    synapse.sparse = synapse.sparse or source.sparse
