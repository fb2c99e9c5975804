"""The synapse's node in C++, for steps whose time is Python's: `apical native` builds it once, and all that comes after uses it.

It makes the calls of ordinary steps, to the bit as `apical.synapses.function` does, which makes all others: for feedback with
arithmetic of its own, in compiled code. Under `LocalSGD` it takes plain SGD's steps itself, and hands over to `apical.optim` what
any other needs; in passes that are recorded for a phase it tells the record what came by.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from apical.synapses.native.building import library
from apical.synapses.transformed import SECOND

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse

OPERATIONS = {"forward", "prepare", "transmit", "feed_back", "hebbian", "respond"}
"""What the node does of a synapse: a class that does one of these in another way has none."""
_PLAIN = (Tensor, nn.Parameter)
TOLD = {"plasticity", "pathway", "subspace", "sends_back", "sparse", "large"}
"""Attributes of a synapse on which its settings depend."""


def tell(synapse: Synapse, name: str, value: Any) -> None:
    """Take in that an attribute of a synapse is about to change."""
    if name == "sends_back" and synapse.native:
        synapse.native.sends_back = value  # For calls that were made already, too.
    else:
        vars(synapse).pop("native", None)


def call(
    synapse: Synapse, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Tensor | None, geometry: Geometry
) -> Tensor | None:
    """The output of a synapse's call, with the node that carries its rule; None: Python's has to."""
    if torch.compiler.is_compiling():  # Code around a graph break is compiled function by function.
        return None
    circuit, settings = synapse.circuit, synapse.native
    if settings is None:
        built = library()
        if built is None:
            return None
        settings = synapse.native = _settle(synapse, built)
    if settings is False or type(x) is not Tensor or type(weight) not in _PLAIN:
        return None
    if forward_ad._current_level >= 0:
        return None
    own = vars(synapse)
    if "transmit" in own or "respond" in own or "feed_back" in own or "hebbian" in own:  # As while an audit goes on.
        return None
    return settings.call(x, weight, bias, feedback, geometry, circuit.updater, circuit.record, synapse)


def within(synapse: Synapse, x: Tensor) -> bool:
    """Whether it is certain that a signal at x goes to a synapse of the same learner, and on to nothing else."""
    return bool(synapse.native) and synapse.native.within(x)


def taps() -> Any | None:
    """What leaves and joins the taps of an ordinary step; None where Python has to: `tap(x, D, most)`, `join(output, taps)`."""
    return None if torch.compiler.is_compiling() else library()


def _settle(synapse: Synapse, built: Any) -> Any | Literal[False]:
    """What the node has to know of a synapse; False where it can't do what the synapse does."""
    connection = synapse.connection
    # Memory is used again on a CPU only.
    if (
        synapse.kernel is None
        or synapse.subspace is not None
        or synapse.sparse
        or (synapse.large and not synapse.weight_now.is_cuda)
    ):
        return False
    if (connection.resolve is not None and not connection.signs) or (
        connection.increment is not None and not connection.follows
    ):
        return False
    settings = built.Settings(
        linear=synapse.kernel == "linear",
        sign=connection.signs,
        gain=connection.gain,
        follows=connection.follows,
        fuses=synapse.fuses,
        busy=synapse.circuit.flag(built.Busy),
        words=_Words(weakref.ref(synapse)),
        second=f"create_graph=True {SECOND}",
    )
    settings.sends_back = synapse.sends_back
    return settings


class _Words:
    """What there is to say where a call's backward pass can't go on: `find(busy)`, or None."""

    def __init__(self, synapse: weakref.ref[Synapse]) -> None:
        self.synapse = synapse

    def __call__(self, busy: bool) -> str | None:
        synapse = self.synapse()
        if synapse is None:
            return None
        try:
            if busy:
                synapse.circuit.refuse("the backward pass came to", synapse.label)
            synapse.circuit.examine()  # Shapes that no longer fit have a better reason than the product's.
        except RuntimeError as error:
            return str(error)
        return None
