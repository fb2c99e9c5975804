"""A composite layer taken apart, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

from torch import nn

from apical.composites.projection import Projection


class Unfused(nn.Module):
    """A composite layer whose linear maps are children of it, each a `Projection`, with the same output.

    Subclasses derive from it and from the plain layer, so that the class can be swapped in place.
    """

    plain: ClassVar[type[nn.Module]]

    def projections(self) -> Iterable[tuple[str, str, str | None]]:
        """For each linear map: the name of the child, and of the weight and the bias that the layer keeps."""
        raise NotImplementedError

    def maps(self) -> Iterable[tuple[str, Projection]]:
        """The linear maps, by the names of the children that they become."""
        return [(name, Projection(self, weight, bias)) for name, weight, bias in self.projections()]

    def link(self) -> None:
        """Let each child have the parameters that the layer has now."""
        for child in self._modules.values():
            if isinstance(child, Projection):
                weight, bias = child.kept_as
                own, its = self._parameters, child._parameters
                if its["weight"] is not own[weight] or (bias is not None and its["bias"] is not own[bias]):
                    child.link(self)


def lent(module: nn.Module) -> set[str]:
    """Names of the parameters that a composite layer keeps for its linear maps, and does not use itself."""
    if not isinstance(module, Unfused):
        return set()
    maps = (child for child in module._modules.values() if isinstance(child, Projection))
    return {name for child in maps for name in child.kept_as if name is not None}


KINDS: dict[type[nn.Module], type[Unfused]] = {}
"""Plain layer -> what stands in for exactly that."""


def unfuses(kind: type[Unfused]) -> type[Unfused]:
    """Decorator: `kind` stands in for its plain layer from now on."""
    KINDS[kind.plain] = kind
    return kind


def unfuse(model: nn.Module) -> list[Callable[[], Any]]:
    """Take all composite layers of `model` apart, in place; what puts each together again."""
    undo: list[Callable[[], Any]] = []
    for module in list(model.modules()):
        kind = KINDS.get(type(module))
        if kind is not None:
            undo.append(_unfuse(module, kind))
    return undo


def _unfuse(module: nn.Module, kind: type[Unfused]) -> Callable[[], Any]:
    plain = type(module)
    module.__class__ = kind
    assert isinstance(module, Unfused)
    names = []
    for name, one in module.maps():
        module.add_module(name, one)
        names.append(name)
    return partial(_fuse, module, plain, names)


def _fuse(module: nn.Module, plain: type[nn.Module], names: list[str]) -> None:
    for name in names:
        module._modules.pop(name, None)
    module.__class__ = plain
