"""What every plasticity answers: how feedback weights come to be. Where they live decides its kind.

- `Stored`: in a buffer, drawn once, and learned, if at all, in a phase of its own;
- `Trained`: in a parameter, which the user's optimizer moves with the weights;
- `Computed`: nowhere; they are made from the weights when a signal goes back.

A plasticity that learns in a phase of its own is `Phased` as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.plasticity.initialization import Init, draw_for
from apical.synapses.circuit import Connection
from apical.synapses.storage import SEED, form_of, keep, kept

if TYPE_CHECKING:
    from apical.phases.phase import Phase
    from apical.synapses.synapse import Synapse


@dataclass(frozen=True)
class Plasticity:
    """How feedback weights come to be.

    A value without state: what it stores, it stores on the module that owns the feedback, by `keep`. The owner is a synapse, or
    a block named in ``at=``. Fields of a subclass, a frozen dataclass, are the rule's hyperparameters.

    A subclass gives `name` and `pathways`, and any of three methods.

    >>> import apical
    >>> isinstance(apical.rule("bp").plasticity, Plasticity)
    True
    """

    name: ClassVar[str]
    pathways: ClassVar[frozenset[str]]
    """Names of the pathways that this plasticity makes sense with."""

    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        """Store what this plasticity keeps for feedback of `shape` on `owner`. The default keeps nothing."""

    def keeps(self, owner: nn.Module) -> Tensor | None:
        """The tensor that a forward pass keeps for its backward: the feedback weights, or what they are computed from."""
        raise NotImplementedError

    def check(self, owner: nn.Module, name: str, shape: torch.Size) -> None:
        """Raise a ValueError if feedback of `shape` can't be had on `owner`, before anything is stored."""

    @final
    def connection(self, synapse: Synapse) -> Connection:
        """The answers for one synapse that its backward pass needs."""
        return Connection(
            resolve=self.resolve if isinstance(self, Computed) else None,
            gain=self.gain(synapse) if isinstance(self, Computed) else 1.0,
            increment=self.increment if isinstance(self, Trained) else None,
            assign=self.store if isinstance(self, Stored | Trained) else None,
            signs=isinstance(self, Computed) and self.signs,
            follows=isinstance(self, Trained) and self.follows_weights,
            exports=not (
                isinstance(self, Phased)
                or (isinstance(self, Computed) and self.redraws)
                or (isinstance(self, Trained) and not self.follows_weights)
            ),
        )


class Stored(Plasticity):
    """Feedback in the buffer "feedback" of its owner.

    A subclass has a field `init`, by which the feedback is drawn, or prepares it itself.

    >>> import apical
    >>> [name for name, rule in apical.rules().items() if isinstance(rule.plasticity, Stored)]
    ['fa', 'frfb', 'dfa', 'ifa', 'wm', 'np', 'np-direct', 'sg', 'sg-direct']
    """

    init: Init

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        keep(owner, "feedback", draw_for(owner, self.init, shape, generator))

    @final
    @override
    def keeps(self, owner: nn.Module) -> Tensor | None:
        own = owner._buffers
        return own["feedback"] if "feedback" in own else own[SEED]

    @final
    def store(self, owner: nn.Module, value: Tensor) -> None:
        """Take a copy of `value` as feedback weights, in place of those stored: weights that it aliases may move.

        Raises:
            ValueError: if what is stored is not the feedback itself.
        """
        form = form_of(owner)
        if form is not None and form.made:
            what = "drawn from a seed (seeded=True)" if form.seeded else "a part of one matrix (shared=True)"
            raise ValueError(f"direct feedback that is {what} can't be set; leave that option out")
        keep(owner, "feedback", value.detach().to(feedback_at(owner), copy=True))


class Trained(Plasticity):
    """Feedback in the parameter "feedback" of its owner, which the user's optimizer moves together with the weights.

    A subclass has a field `init`, and says by `increment` what the parameter's gradient is.

    >>> import apical
    >>> [name for name, rule in apical.rules().items() if isinstance(rule.plasticity, Trained)]
    ['kp', 'matched', 'urfb', 'kp-direct']
    """

    init: Init

    @override
    def prepare(self, owner: nn.Module, shape: torch.Size, generator: torch.Generator) -> None:
        keep(owner, "feedback", draw_for(owner, self.init, shape, generator), trained=True)

    @final
    @override
    def keeps(self, owner: nn.Module) -> Tensor | None:
        return owner._parameters["feedback"]

    @final
    def store(self, owner: nn.Module, value: Tensor) -> None:
        """Take `value` as feedback weights, in place, so that an optimizer made before keeps hold of them."""
        with torch.no_grad():
            feedback_at(owner).copy_(value)

    def increment(self, product: Tensor | None) -> Tensor | None:
        """The feedback's gradient, given the Hebbian product of its synapse; the product itself if `follows_weights`."""
        raise NotImplementedError

    @property
    def follows_weights(self) -> bool:
        """Whether the feedback's gradient is the weights' own, so that both may move by one product."""
        return False


class Computed(Plasticity):
    """Feedback that is made from the weights whenever a signal goes back.

    >>> import apical
    >>> [name for name, rule in apical.rules().items() if isinstance(rule.plasticity, Computed)]
    ['usf', 'brsf', 'frsf']
    """

    def resolve(self, owner: nn.Module, found: Tensor, out: Tensor | None = None) -> Tensor:
        """The feedback weights, from the tensor that the forward pass kept; written to `out` if it is given."""
        raise NotImplementedError

    @property
    def signs(self) -> bool:
        """Whether `resolve` takes the sign of what was kept, and does no more."""
        return False

    def gain(self, owner: nn.Module) -> float:
        """A factor of the feedback that `resolve` leaves out, because it is cheaper to apply to the signal."""
        return 1.0

    @property
    def redraws(self) -> bool:
        """Whether `redraw` is to be called before every forward pass of the whole model."""
        return False

    def redraw(self, owner: nn.Module, generator: torch.Generator) -> None:
        """Draw anew the numbers that change with every batch."""


class Phased:
    """A plasticity or pathway that learns in a phase of its own, between ``backward`` and the optimizer's step.

    Attributes:
        needs: "noise alone", or "the pass before": losses and errors of the batch, which are then recorded.
        broadcast: the signal that the phase sends to every synapse alike, in words; an audit reports it.
        warmup: calls of `apical.Learner.adapt` during which no weight may move.

    >>> import apical
    >>> isinstance(apical.rule("wm").plasticity, Phased), isinstance(apical.rule("reinforce").pathway, Phased)
    (True, True)
    """

    needs: ClassVar[Literal["noise alone", "the pass before"]] = "noise alone"
    broadcast: ClassVar[str] = ""
    warmup: int = 0

    # No abstract base class: whether a part is phased is asked in every phase, and ABCMeta's answer takes as long as a product.
    def adapt(self, phase: Phase) -> None:
        """Let the feedback at ``phase.sites`` learn."""
        raise NotImplementedError


def redrawn(plasticity: Plasticity) -> Computed | None:
    """The plasticity itself if it draws numbers anew before every pass of the whole model, else None."""
    return plasticity if isinstance(plasticity, Computed) and plasticity.redraws else None


def feedback_at(owner: nn.Module) -> Tensor:
    """The feedback weights stored on their owner, to be changed in place."""
    found = kept(owner, "feedback")
    assert found is not None, "no feedback is stored here"
    return found
