"""What every pathway answers: how a teaching signal reaches a synapse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from apical.pathways.checkpointing import opening, recomputing, refuse_second
from apical.synapses.circuit import ONE_THREAD

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner
    from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Pathway:
    """How a teaching signal reaches a synapse.

    A value without state; what it needs of a model while it learns, it installs there. Fields of a subclass, a frozen dataclass,
    are the rule's hyperparameters. A pathway whose signal is found in a phase of its own is `apical.plasticity.Phased` as well.

    >>> import apical
    >>> isinstance(apical.rule("dfa").pathway, Pathway)
    True
    """

    name: ClassVar[str]

    def enter(self, synapse: Synapse, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input as the synapse takes it, and what its backward keeps of the feedback (None: no signal goes back)."""
        raise NotImplementedError

    def install(self, learner: Learner) -> Iterable[RemovableHandle]:
        """Put hooks on the learner's model, once its synapses are there; the handles by which they are removed."""
        return ()


def asked_by_the_model(synapse: Synapse, x: Tensor) -> bool:
    """Whether a gradient is asked for at data by the model itself, as for checkpoints to come: nobody else knows that leaf."""
    return x.requires_grad and x.is_leaf and synapse.derived and not recomputing()


class WholePass:
    """A forward pass of the whole model that learns, from its begin to its end.

    Signals that come from the output, or numbers that are drawn anew with every batch, are lost on parts of the model that are
    called alone; so synapses ask `within`. `begin` and `end` are hooks of the model. A pass belongs to the thread that opened
    it, and passes without gradients go by it.

    Args:
        reason: why a synapse can't be called on its own, as the end of a sentence.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.open = False
        self.thread = 0
        """Who has opened the pass; 0: compiled code, which can't tell."""
        self.muted = 0
        """Thread whose passes are none that learn, as while `apical.phases.conditions` goes through the synapses."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "open": False}

    def follow(self, model: nn.Module) -> list[RemovableHandle]:
        """Put `begin` and `end` on the model."""
        return [
            model.register_forward_pre_hook(self.begin),
            model.register_forward_hook(self.end, always_call=True),
        ]

    @property
    def mine(self) -> bool:
        """Whether the open pass is this thread's."""
        return torch.compiler.is_dynamo_compiling() or self.thread == get_ident() or not self.thread

    def begin(self, module: nn.Module, args: Any) -> None:
        """Open a pass; a pre-hook of the model."""
        if not torch.is_grad_enabled():
            return
        if self.muted:
            if self.muted != get_ident() and not recomputing():
                raise RuntimeError(
                    f"{type(module).__name__} was called with gradients while another thread was in learner.adapt or measured "
                    f"the model; {ONE_THREAD}"
                )
            return
        if torch.compiler.is_dynamo_compiling():
            self._take(module, 0)
        else:
            with opening:
                self._take(module, get_ident())
        self.start()

    def _take(self, module: nn.Module, thread: int) -> None:
        if self.open:
            refuse_second(module, self.thread)
        # In this order, for a thread that was refused asks in `end` whose the open pass is.
        self.thread, self.open = thread, True

    def end(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Close the pass; a hook of the model, which also runs when the pass has failed, with None for the output."""
        if not self.open or not torch.is_grad_enabled() or not self.mine:
            return None
        try:
            return self.finish(module, output)
        finally:
            self.open = False  # Until then another thread's pass would take what this one has gathered.

    def start(self) -> None:
        """What else there is to do when a pass opens."""

    def finish(self, module: nn.Module, output: Any) -> Any:
        """What else there is to do when a pass closes; gives the model's output (None: as it is)."""

    def within(self, label: str) -> bool:
        """Whether activation checkpointing computes the pass again, inside the backward.

        Raises:
            RuntimeError: if no pass of the whole model is open in this thread.
        """
        if self.open and self.mine:
            return False
        if recomputing():
            return True
        raise RuntimeError(
            f"'{label}' was called on its own, but {self.reason}: call the model that was given to apical.attach, or attach "
            "to the part you call"
        )

    def call_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        """Refuse a call that builds no graph, where a signal would be lost. Here none is."""
