"""Phases of their own that never come, because nobody calls `adapt`: a warning at the third step."""

from __future__ import annotations

import warnings
import weakref
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import Optimizer

from apical.step_hooks import everywhere

if TYPE_CHECKING:
    from apical.learner import Learner

_waiting: weakref.WeakKeyDictionary[Learner, int] = weakref.WeakKeyDictionary()
"""Learners that have a phase and never had it, with how many steps there were."""
_counted: weakref.WeakKeyDictionary[Learner, weakref.ref[Optimizer]] = weakref.WeakKeyDictionary()
"""The one of their optimizers whose steps are counted."""


def watch(learner: Learner) -> None:
    """Count the steps before the first phase of `learner`."""
    _waiting[learner] = 0
    everywhere.before(_count)


def waiting() -> bool:
    """Whether steps are counted, those of `LocalSGD` too."""
    return bool(_waiting)


def came(learner: Learner) -> None:
    """Say that `adapt` was called."""
    # The hook stays: another thread may be walking through PyTorch's list of them.
    _waiting.pop(learner, None)


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Warn at the third step if a rule has a phase that never was."""
    if not _waiting:
        return
    held = everywhere.ids(optimizer)
    for learner, steps in list(_waiting.items()):
        known = _counted.get(learner)
        if known is not None and known() not in (None, optimizer):
            continue  # One step of the learner is a step of each of its optimizers.
        weights = everywhere.ids_of(s._parameters.get("weight") for s in learner.synapses.values())
        if not weights & held:
            continue
        _counted[learner], _waiting[learner] = weakref.ref(optimizer), steps + 1
        if steps < 2 and not learner.adapted:
            continue
        _waiting.pop(learner, None)
        if not learner.adapted and learner.phases.learns and learner.phases.parts():
            warnings.warn(
                f"rule '{learner.name}' has a phase of its own, which was in none of three steps: call "
                "learner.adapt(inputs, targets, criterion) between backward() and step(), or what learns there stays as it was",
                stacklevel=3,
            )
