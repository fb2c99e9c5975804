"""A synapse in `torch.export`: a graph of plain operations carries no autograd Function, but can carry a rule all the same.

The output is that of the weights, to whose input no signal goes back, and in addition a product with the feedback weights less
itself: nothing in value, and the rule's signal in the backward pass.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse


def silent(via: Tensor) -> Tensor:
    """Zeros with the gradient of `via`."""
    return via - via.detach()


def exported(
    x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, synapse: Synapse, geometry: Geometry
) -> Tensor:
    """The synapse's output. Of a model in eval mode that alone: who exports for inference pays for no feedback."""
    if not synapse.training:
        return synapse.transmit(x, weight, bias, geometry)
    if not synapse.connection.exports:
        say(synapse.pathway.name, synapse.plasticity.name, synapse.label)
        return synapse.transmit(x, weight, bias, geometry)
    connection, mask = synapse.connection, None if synapse.computed else synapse._buffers.get("weight_mask")
    weight = weight if mask is None else weight * mask
    y = synapse.transmit(x.detach(), weight, bias, geometry)
    if feedback is None:
        return y
    if connection.resolve is not None:
        feedback = synapse.resolved(feedback, reuse=False) * connection.gain
    mask = synapse._buffers.get("feedback_mask")
    feedback = feedback.detach() if connection.increment is None else feedback if mask is None else feedback * mask
    if synapse.subspace is not None:
        # delta P^T P B for the input, and B's own update: P stays as it is in what is exported.
        feedback = synapse.subspace.seen(synapse, feedback.detach()) + silent(feedback)
    return y + silent(synapse.transmit(x, feedback, None, geometry))


def say(pathway: str, plasticity: str, label: str) -> None:
    """Warn that an export carries nothing of a rule."""
    warnings.warn(
        f"an exported model can't carry pathway '{pathway}' with plasticity '{plasticity}' (at '{label}'): trained, it would "
        "learn by backpropagation, or in its last layer alone; export in eval mode, for inference, or detach the learner first",
        stacklevel=2,
    )
