"""Noticing an optimizer that was made before the feedback existed, and so would never move it."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from apical.learner import Learner


_learners: weakref.WeakSet[Learner] = weakref.WeakSet()
_checked: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
_hook: list[Any] = []


def watch_optimizers(learner: Learner) -> None:
    """Check, at their first step, that optimizers which move this learner's weights move its trainable feedback as well."""
    if not any(rule.plasticity.trainable for rule in learner.rules.values()):
        return
    _learners.add(learner)
    _checked.clear()
    if not _hook:
        _hook.append(register_optimizer_step_pre_hook(_check))


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    if _checked.get(optimizer) == held:
        return
    ids = _ids(optimizer)
    settled = True
    for learner in list(_learners):
        if not any(id(parameter) in ids for parameter in learner.model.parameters()):
            continue
        for name, owner in {**learner.synapses, **learner.blocks}.items():
            feedback, weight = owner._parameters.get("feedback"), owner._parameters.get("weight")
            if feedback is None or id(feedback) in ids or (weight is not None and id(weight) not in ids):
                continue
            if feedback.grad is None:
                settled = False  # No backward yet, or frozen: look again at the next step.
                continue
            require_optimizer(feedback, name, learner.name)
    if settled:
        _checked[optimizer] = held


def require_optimizer(feedback: nn.Parameter, name: str, rule: str) -> None:
    """Raise a RuntimeError if no optimizer holds the trainable feedback of the layer `name`."""
    # It may have an optimizer of its own; worth a look through memory, once.
    optimizers = (o for o in gc.get_objects() if issubclass(type(o), Optimizer))
    if not any(id(feedback) in _ids(one) for one in optimizers):
        raise RuntimeError(
            f"no optimizer holds the feedback of '{name}', so rule '{rule}' would not learn it: make the optimizer after "
            "apical.attach, or call optimizer.add_param_group({'params': learner.feedback_parameters()})"
        )


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
