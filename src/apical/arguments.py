"""The input of a layer that is called, by position or by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument, or the one named as PyTorch's layers name it, or else the first that is named."""
    return args[0] if args else kwargs[_name(kwargs)]


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """The same call with another input."""
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, _name(kwargs): x})


def _name(kwargs: dict[str, Any]) -> str:
    return "input" if "input" in kwargs else next(iter(kwargs))
