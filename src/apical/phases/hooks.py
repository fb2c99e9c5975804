"""Hooks that a model's own code puts on its modules in a pass: where a pass leaves no trace, they go with it.

Hugging Face's models do so at their first pass, and note it in an attribute. Were that put back, and the hooks left, the next
pass would bring a second set of them, and every hidden state twice.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

_KINDS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))
"""Names of the dictionaries of hooks that a module has; others, by the same numbers, tell how each of them is called."""
_OPTIONS = tuple(name for name in vars(nn.Module()) if "_hooks_" in name)


class Hooks:
    """The hooks of one module, as they are now; `restore` takes those away that the model's code has added."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = {name: frozenset(vars(module)[name]) for name in _KINDS if vars(module).get(name)}

    def _added(self) -> list[tuple[str, int]]:
        own = vars(self.module)
        return [
            (name, number)
            for name in _KINDS
            for number, hook in (own.get(name) or {}).items()
            if number not in self.before.get(name, ()) and not _library(hook)
        ]

    def changed(self) -> bool:
        """Whether there are such."""
        return bool(self._added())

    def restore(self) -> None:
        """Take them away."""
        own = vars(self.module)
        for name, number in self._added():
            for one in (name, *(other for other in _OPTIONS if other.startswith(name))):
                own[one].pop(number, None)


def _library(hook: Any) -> bool:
    """Whether a hook is PyTorch's or apical's, who know why it is there."""
    while isinstance(hook, partial):
        hook = hook.func
    where = getattr(hook, "__module__", None) or type(hook).__module__
    return where.partition(".")[0] in ("torch", "apical")
