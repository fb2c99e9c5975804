"""Without an example input, the first pass that learns shows which synapses no signal leaves."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from apical.distributed import together
from apical.nested import input_of
from apical.synapses.transformed import compiling, transforming

if TYPE_CHECKING:
    from apical.learner import Learner


class FirstPass:
    """Hooks that look at the first pass that learns, and take out of use the feedback of synapses that no signal leaves.

    Parameters keep their places: averages, vectors and optimizers may count on them by now. Buffers keep theirs if the model
    was copied before, as for an average of them.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.signal: dict[str, bool] = {}
        self.thread = 0
        self.copied = False
        model = learner.model
        # `start` first: a model that is one synapse has both pre-hooks.
        self.handles = [model.register_forward_pre_hook(self.start)]
        self.handles += [s.register_forward_pre_hook(self.see, with_kwargs=True) for s in learner.synapses.values()]
        self.handles += [model.register_forward_hook(self.finish)]

    def __getstate__(self) -> dict[str, Any]:
        self.copied = True  # For both, the copy and the one that it is made of.
        return self.__dict__

    def _learns(self) -> bool:
        # Under frozen parameters, in compiled or transformed code, or with DDP's buckets already made, nothing is decided.
        return (
            torch.is_grad_enabled()
            and not compiling()
            and not transforming()
            and not together()
            and all(p.requires_grad for p in self.learner.model.parameters())
        )

    def start(self, module: nn.Module, args: Any) -> None:
        """Pre-hook of the model."""
        if torch.is_grad_enabled() and not compiling():
            self.signal, self.thread = {}, get_ident()

    def see(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Pre-hook of every synapse; without kwargs, called in one thread after another one has removed it."""
        if not torch.is_grad_enabled() or compiling() or self.thread != get_ident():
            return
        if kwargs is not None and (args or kwargs):
            self.signal[module.label] = self.signal.get(module.label, False) or input_of(args, kwargs).requires_grad

    def finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the model: decide, and leave."""
        if not self.signal or not self._learns() or self.thread != get_ident():
            return
        for name, leaves in self.signal.items():
            if not leaves:
                self.learner.synapses[name].silence(copied=self.copied)
        for handle in self.handles:
            handle.remove()
