"""Trainable feedback that no optimizer holds is an error at the first step of one that moves its weights."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.optimizer import Optimizer

from apical.step_hooks import everywhere, groups

if TYPE_CHECKING:
    from apical.learner import Learner

_learners: weakref.WeakSet[Learner] = weakref.WeakSet()
_checked: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
"""Optimizers that were seen to hold all feedback they should, with how many parameters they had then."""


def watch(learner: Learner) -> None:
    """Look after the trainable feedback of `learner`: that an optimizer holds it, and moves it as its weights."""
    _learners.add(learner)
    _checked.clear()
    everywhere.before(_check)


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise a RuntimeError if the optimizer moves weights whose trainable feedback no optimizer holds."""
    held = everywhere.count(optimizer)
    if _checked.get(optimizer) == held:
        return
    ids = everywhere.ids(optimizer)
    settled = True
    for learner in list(_learners):
        if any(id(parameter) in ids for parameter in learner.model.parameters()):
            settled &= _look(optimizer, learner, ids)
    if settled:
        _checked[optimizer] = held


def _look(optimizer: Optimizer, learner: Learner, ids: set[int]) -> bool:
    """Whether there is nothing more to look for in steps to come."""
    settled = True
    for name, owner in learner.owners.items():
        feedback, weight = owner._parameters.get("feedback"), owner._parameters.get("weight")
        if not getattr(owner, "sends_back", True):
            continue
        if feedback is None or (weight is not None and id(weight) not in ids):
            continue
        if feedback.grad is None:
            settled = settled and not feedback.requires_grad  # No backward yet, or frozen: look again at the next step.
        elif id(feedback) not in ids:
            require_optimizer(feedback, name, learner.name)
    groups.follow(optimizer, learner.owners, learner.name)
    groups.tell_unlike_gradients(optimizer, learner.model, learner.owners, learner.name)
    return settled


def require_optimizer(feedback: nn.Parameter, name: str, rule: str) -> None:
    """Raise a RuntimeError if no optimizer holds the trainable feedback of the layer `name`."""
    # It may have an optimizer of its own; worth a look through memory, once.
    optimizers = (o for o in gc.get_objects() if issubclass(type(o), Optimizer))
    if not any(id(feedback) in everywhere.ids(one) for one in optimizers):
        raise RuntimeError(
            f"no optimizer holds the feedback of '{name}', so rule '{rule}' would not learn it: make the optimizer after "
            "apical.attach, or call optimizer.add_param_group({'params': learner.feedback_parameters()})"
        )
