"""Numbers that change with every batch, such as batchwise magnitudes, drawn before every pass of the whole model that learns.

Compiled code can't have a generator, so it draws them by one operation that it doesn't look into.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from apical.pathways.base import WholePass
from apical.pathways.checkpointing import recomputing
from apical.plasticity.base import redrawn
from apical.synapses.storage import kept, mask_feedback, names_kept

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.synapses.synapse import Synapse

_count = itertools.count()
_all: weakref.WeakValueDictionary[int, Redraw] = weakref.WeakValueDictionary()


class Redraw(WholePass):
    """Draws the numbers of one learner."""

    def __init__(self, learner: Learner) -> None:
        super().__init__("batchwise magnitudes are drawn with every pass of the whole model")
        self.learner = learner
        self._enter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enter()

    def _enter(self) -> None:
        self.key = next(_count)
        _all[self.key] = self

    @override
    def start(self) -> None:
        if torch.compiler.is_exporting():
            return
        if torch.compiler.is_dynamo_compiling():
            _redraw([synapse._buffers[name] for synapse, name in self.places()], self.key)
        elif not recomputing():
            self.draw()

    def draw(self) -> None:
        """Draw all numbers anew."""
        for synapse in self.learner.synapses.values():
            plasticity = redrawn(synapse.plasticity)
            if plasticity is not None:
                plasticity.redraw(synapse, self.learner.generator)
                mask_feedback(synapse)

    def places(self) -> Iterator[tuple[Synapse, str]]:
        """Where what is drawn is kept."""
        for synapse in self.learner.synapses.values():
            if redrawn(synapse.plasticity) is not None:
                for name in names_kept(synapse):
                    if kept(synapse, name) is not None:
                        yield synapse, name


@torch.library.custom_op("apical::redraw", mutates_args=("numbers",), tags=(torch.Tag.cudagraph_unsafe,))
def _redraw(numbers: list[Tensor], key: int) -> None:
    """Draw the numbers of the learner with that key, into memory of compiled code."""
    if recomputing():
        return
    one = _all[key]
    places = [(synapse, name, synapse._buffers[name]) for synapse, name in one.places()]
    one.draw()
    for number, (synapse, name, before) in zip(numbers, places, strict=True):
        drawn = kept(synapse, name)
        assert drawn is not None, "what was kept is drawn anew"
        number.copy_(drawn)
        synapse._buffers[name] = before
