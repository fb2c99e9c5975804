"""apical's own hooks at the steps of all optimizers, which PyTorch calls from global lists."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch.nn import Parameter
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

if TYPE_CHECKING:
    from apical.learner import Learner

Hook = Callable[[Optimizer, Any, Any], None]

_before: dict[Hook, Any] = {}
_after: dict[Hook, Any] = {}
"""Hooks, with what would take them away."""

learners: weakref.WeakSet[Learner] = weakref.WeakSet()
"""All learners there are, attached or not."""


def before(hook: Hook) -> None:
    """Call `hook` before the steps of all optimizers, if it isn't called there already."""
    if hook not in _before:
        _before[hook] = register_optimizer_step_pre_hook(hook)


def after(hook: Hook) -> None:
    """Call `hook` after the steps of all optimizers, if it isn't called there already."""
    if hook not in _after:
        _after[hook] = register_optimizer_step_post_hook(hook)


def others() -> bool:
    """Whether there are hooks besides these.

    `LocalSGD` sees to what these do itself (while a phase is missed, by calling them), and skips PyTorch's wrapper
    around `step` where there are no others: that wrapper (a profiler's record and two walks through hooks) takes as long as
    three small layers' updates. PyTorch keeps its lists private.
    """
    return len(_global_optimizer_pre_hooks) > len(_before) or len(_global_optimizer_post_hooks) > len(_after)


def count(optimizer: Optimizer) -> int:
    """How many parameters an optimizer holds."""
    return sum(len(group["params"]) for group in optimizer.param_groups)


def ids(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that an optimizer holds."""
    return ids_of(p for group in optimizer.param_groups for p in group["params"])


def ids_of(parameters: Iterable[Parameter | None]) -> set[int]:
    """The ids of `parameters`."""
    return {id(p) for p in parameters if p is not None}
