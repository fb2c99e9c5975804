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
    """The hooks of one module, as they are now; `restore` puts back what the model's code has added or taken away."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = {name: dict(vars(module)[name]) for name in (*_KINDS, *_OPTIONS) if vars(module).get(name)}

    def _apart(self) -> list[tuple[str, int]]:
        """Dictionary and number of hooks that were not there, or are not any more."""
        own = vars(self.module)
        return [
            (name, number)
            for name in _KINDS
            for one, other in [(own.get(name) or {}, self.before.get(name, {}))]
            for number in one.keys() ^ other.keys()
            if not _library(one.get(number) or other[number])
        ]

    def changed(self) -> bool:
        """Whether there are such."""
        return bool(self._apart())

    def restore(self) -> None:
        """Take those away that are new, and put those back that are gone, where they were."""
        own = vars(self.module)
        for name, number in self._apart():
            for one in (name, *(other for other in _OPTIONS if other.startswith(name))):
                held, before = own[one], self.before.get(one, {})
                if number in held:
                    del held[number]
                elif number in before:
                    order = [*before, *(other for other in held if other not in before)]
                    kept = {**held, number: before[number]}
                    held.clear()
                    held.update((other, kept[other]) for other in order if other in kept)


def _library(hook: Any) -> bool:
    """Whether a hook is PyTorch's or apical's, who know why it is there."""
    while isinstance(hook, partial):
        hook = hook.func
    where = getattr(hook, "__module__", None) or type(hook).__module__
    return where.partition(".")[0] in ("torch", "apical")
