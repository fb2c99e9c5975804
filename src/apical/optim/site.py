"""What one synapse brings in the backward pass, and how it moves by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from apical.optim import moving
from apical.optim.shared_velocity import has_velocity, part, shares
from apical.plasticity.base import Trained

if TYPE_CHECKING:
    from apical.optim.batched import Batched
    from apical.optim.shared_velocity import Group, State
    from apical.synapses.synapse import Synapse

_Update = tuple[Tensor, Tensor, Tensor | None]
"""One call's delta and x, and their product delta^T x where it is made already."""
Plan = tuple[Tensor, Tensor | None, Tensor | None, float, float, float, bool]
"""What C++ moves by plain SGD: weights, bias and trainable feedback, the rate of each, and whether the error is unread yet."""


@dataclass(slots=True, eq=False)
class Site:
    """What a synapse has heard in this step: how many calls are to come, and what has come and waits."""

    synapse: Synapse
    expected: int = 0
    waiting: list[_Update] = field(default_factory=list)
    bias: Tensor | None = None
    feedback: bool = False
    heard: bool = False
    done: bool = False
    own: list[nn.Parameter] = field(default_factory=list)
    """What may move in a backward pass."""
    spends: list[nn.Parameter] = field(default_factory=list)
    """What of that is `Spent` from there to the step."""

    def reset(self) -> None:
        """Ready for the next step."""
        self.expected, self.bias, self.feedback, self.heard, self.done = 0, None, False, False, False
        self.waiting.clear()

    def forget(self) -> None:
        """Let go of what has come."""
        self.bias, self.feedback, self.heard = None, False, False
        self.waiting.clear()

    def restore(self) -> None:
        """Make what was spent ordinary again."""
        for parameter in self.spends:
            parameter.__class__ = nn.Parameter

    def plan(self, groups: Mapping[int, Group], state: State, unread: bool) -> Plan | None:
        """How one call's update moves the synapse where it moves by rates alone; None where `apply` has to find out."""
        if self.expected > 1 or self.waiting or self.bias is not None or self.synapse.sparse:
            return None
        own = self.synapse._parameters
        weight, bias, feedback = own["weight"], own.get("bias"), own.get("feedback")
        assert weight is not None
        rate = groups[id(weight)]["lr"]
        bias_rate = feedback_rate = 0.0
        if bias is not None:
            if id(bias) not in groups:
                return None
            bias_rate = groups[id(bias)]["lr"]
        if feedback is not None:
            if id(feedback) not in groups or (state and has_velocity(state, weight)):
                return None
            feedback_rate = groups[id(feedback)]["lr"]
        if not type(rate) is type(bias_rate) is type(feedback_rate) is float:
            return None
        return weight, bias, feedback, rate, bias_rate, feedback_rate, unread

    def apply(self, groups: Mapping[int, Group], state: State, batch: Batched | None = None) -> None:
        """Move the synapse by what has come, or, with a `batch`, let it be moved with others.

        groups: the options of each parameter, by its id.
        """
        synapse, waiting = self.synapse, self.waiting
        move, follow = (moving.move, moving.follow) if batch is None else (batch.move, batch.follow)
        own = synapse._parameters
        weight, feedback = own["weight"], own.get("feedback")
        assert weight is not None
        delta, x, product = waiting[0]
        if feedback is not None and not (self.feedback and id(feedback) in groups):
            part(state, weight, feedback)  # It stands still in this step.
            feedback = None
        forth = back = None
        if synapse.sparse:
            forth, back = synapse._buffers.get("weight_mask"), synapse._buffers.get("feedback_mask")
        together = feedback is not None and forth is back and _shares(synapse, weight, feedback, groups, state)
        if (feedback is not None and not together) or len(waiting) > 1 or weight.dtype != delta.dtype:
            # In full, where it is needed more than once.
            made = [synapse.hebbian(a, d) if p is None else p for d, a, p in waiting]
            product = sum(made[1:], made[0]).to(weight.dtype)
        waiting.clear()
        if feedback is not None and not together:
            part(state, weight, feedback)
            increment = synapse.connection.increment
            own_product = None if increment is None else increment(product)
            if own_product is not None:
                move(feedback, groups[id(feedback)], state, synapse, delta, x, own_product, back)
        move(weight, groups[id(weight)], state, synapse, delta, x, product, forth)
        if feedback is not None and together:
            follow(feedback, weight, groups[id(feedback)], state)
        if self.bias is not None:
            bias = own["bias"]
            assert bias is not None
            product = self.bias if self.bias.dtype == bias.dtype else self.bias.to(bias.dtype)
            move(bias, groups[id(bias)], state, synapse, delta, x, product)


def _shares(
    synapse: Synapse, weight: nn.Parameter, feedback: nn.Parameter, groups: Mapping[int, Group], state: State
) -> bool:
    """Whether weights and trainable feedback move by one velocity."""
    plasticity = synapse.plasticity
    return (
        isinstance(plasticity, Trained)
        and plasticity.follows_weights
        and shares(state, weight, feedback, groups[id(weight)], groups[id(feedback)])
    )
