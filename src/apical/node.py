"""Putting a node into autograd's graph, at the price of the node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

_quick: dict[type[Function], Callable[..., Any]] = {}


def apply(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, without what that does for functorch and for default arguments alone.

    Those few lines of Python take as long as a small layer's product.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply
    found = _quick.get(function)
    if found is None:
        found = _quick[function] = super(Function, function).apply  # type: ignore[misc]
    return found
