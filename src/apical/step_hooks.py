"""What happens at every step of any optimizer: feedback that none holds is an error, absent connections are set to zero.

PyTorch calls hooks of all optimizers' steps from global lists; learners are kept here weakly, and the hooks are registered once,
the first time that a learner needs them.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

if TYPE_CHECKING:
    from apical.learner import Learner

_learners: weakref.WeakSet[Learner] = weakref.WeakSet()
_checked: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
"""Optimizers that were seen to hold all feedback they should, with how many parameters they had then."""
_masked: weakref.WeakKeyDictionary[Optimizer, tuple[int, list[tuple[weakref.ref[nn.Module], str]]]] = (
    weakref.WeakKeyDictionary()
)
"""For each optimizer, how many parameters it had, and the masked ones among them: who owns each, under which name."""
_before: list[Any] = []
_after: list[Any] = []


def watch(learner: Learner) -> None:
    """Look after `learner` at every step of an optimizer that holds its parameters.

    Trainable feedback that no optimizer holds is an error at the first step. Connections that don't exist are set to zero after
    each step: optimizers that treat every element on its own keep them there, since gradients are masked, but others (Muon), and
    gradients from elsewhere (a penalty on weights), do not.
    """
    trains, sparse = any(rule.trains for rule in learner.rules.values()), learner.sparse
    if not (trains or sparse):
        return
    _learners.add(learner)
    _checked.clear()
    _masked.clear()
    if trains and not _before:
        _before.append(register_optimizer_step_pre_hook(_check))
    if sparse and not _after:
        _after.append(register_optimizer_step_post_hook(_mask))


def others() -> bool:
    """Whether anybody besides apical has hooks at the steps of all optimizers.

    `LocalSGD` needs none of apical's own and skips PyTorch's wrapper around `step` where there are no others: that wrapper (a
    profiler's record and two walks through hooks) takes as long as three small layers' updates. PyTorch keeps its lists private.
    """
    return len(_global_optimizer_pre_hooks) > len(_before) or len(_global_optimizer_post_hooks) > len(_after)


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Raise a RuntimeError if the optimizer moves weights whose trainable feedback no optimizer holds."""
    held = _count(optimizer)
    if _checked.get(optimizer) == held:
        return
    ids = _ids(optimizer)
    settled = True
    for learner in list(_learners):
        if not any(id(parameter) in ids for parameter in learner.model.parameters()):
            continue
        for name, owner in learner.owners.items():
            feedback, weight = owner._parameters.get("feedback"), owner._parameters.get("weight")
            if not getattr(owner, "sends_back", True):
                continue
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


@torch.no_grad()
def _mask(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Set what the optimizer has moved to zero where its mask has a zero."""
    held = _count(optimizer)
    known = _masked.get(optimizer)
    if known is None or known[0] != held:
        known = _masked[optimizer] = (held, list(_masked_in(_ids(optimizer))))
    for reference, name in known[1]:
        owner = reference()
        mask = None if owner is None else owner._buffers.get(f"{name}_mask")
        parameter = None if owner is None else owner._parameters.get(name)
        if mask is not None and parameter is not None:
            parameter.mul_(mask)


def _masked_in(ids: set[int]) -> Iterator[tuple[weakref.ref[nn.Module], str]]:
    """Owner and name of every parameter among `ids` that has a mask."""
    for owner in [owner for learner in _learners for owner in learner.owners.values()]:
        for name in ("weight", "feedback"):
            if f"{name}_mask" in owner._buffers and id(owner._parameters.get(name)) in ids:
                yield weakref.ref(owner), name


def _count(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
