"""Finding, in whatever a model returns, the tensor that the loss is made of."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Which = str | int | Callable[[Any], Tensor] | None
"""A key or attribute, an index, a function of the output; None where the output holds one learnable tensor only."""


def pick(output: Any, which: Which) -> Tensor:
    """The tensor of `output` that the loss is made of.

    Raises:
        ValueError: if `which` names nothing there, no tensor, or is missing where there are several candidates.
    """
    if which is None:
        if isinstance(output, Tensor):
            return output
        tensors = {name: value for name, value in _items(output).items() if isinstance(value, Tensor)}
        candidates = {name: value for name, value in tensors.items() if value.requires_grad} or tensors
        if len(candidates) == 1:
            return next(iter(candidates.values()))
        known = list(tensors) or "its tensors (a function of the output may pick it)"
        raise ValueError(
            f"the model returns a {type(output).__name__}; say which tensor the loss is made of with "
            f"apical.attach(..., output=...), one of {known}; for a loss of several, let the model return them as one "
            "(torch.cat), which the criterion takes apart"
        )
    if callable(which):
        try:
            found = which(output)
        except Exception as error:
            raise ValueError(
                f"output= is a function that fails on the model's {type(output).__name__}: {type(error).__name__}: {error}"
            ) from error
    elif isinstance(which, int) and isinstance(output, list | tuple) and -len(output) <= which < len(output):
        found = output[which]
    else:
        items = _items(output)
        if which not in items:
            raise ValueError(f"output={which!r} is not in the model's {type(output).__name__}; it has {list(items)}")
        found = items[which]
    if not isinstance(found, Tensor):
        raise ValueError(f"output={which!r} picks a {type(found).__name__}, not a tensor")
    return found


def _items(output: Any) -> dict[Any, Any]:
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return output._asdict()  # type: ignore[attr-defined]
    if isinstance(output, list | tuple):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return dict(vars(output)) if hasattr(output, "__dict__") and not isinstance(output, Tensor) else {}


def substitute(output: Any, old: Tensor, new: Tensor) -> Any:
    """`output` with the tensor `old` replaced by `new`; containers are copied, not changed.

    Raises:
        ValueError: if `old` is not an element of `output`.
    """
    result = _substitute(output, old, new)
    if result is None:
        raise ValueError(
            f"output= has to pick a tensor that is part of the model's {type(output).__name__}, not compute one"
        )
    return result


def _substitute(output: Any, old: Tensor, new: Tensor) -> Any | None:
    """`output` with every occurrence replaced, or None if there is none."""
    if output is old:
        return new
    if isinstance(output, Tensor) or not (items := _items(output)):
        return None
    replaced = {key: _substitute(value, old, new) for key, value in items.items()}
    replaced = {key: value for key, value in replaced.items() if value is not None}
    return _rebuilt(output, items, replaced) if replaced else None


def over_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it changed; containers are copied, not changed."""
    if isinstance(value, Tensor):
        return change(value)
    items = _items(value)
    return _rebuilt(value, items, {key: over_tensors(one, change) for key, one in items.items()}) if items else value


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in `value`, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for one in _items(value).values() for tensor in tensors(one)]


def first_rows(example: Any, count: int) -> Any:
    """A copy of the first samples of an example."""
    first = next((tensor for tensor in tensors(example) if tensor.dim()), None)
    rows = 0 if first is None else len(first)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:count].detach().clone() if rows > count and tensor.dim() and len(tensor) == rows else tensor

    return over_tensors(example, cut)


def _rebuilt(output: Any, items: dict[Any, Any], replaced: dict[Any, Any]) -> Any:
    """A copy of the container `output` with some of its items replaced."""
    if isinstance(output, tuple):
        values = [replaced.get(key, value) for key, value in items.items()]
        return type(output)(*values) if hasattr(output, "_fields") else tuple(values)
    result = copy.copy(output)
    for key, value in replaced.items():
        if isinstance(output, Mapping | list):
            result[key] = value  # type: ignore[index]
        else:
            object.__setattr__(result, key, value)
    return result


def run(model: nn.Module, example_input: Any) -> Any:
    """Call `model` with an example input: a tensor, a sequence of arguments, or keyword arguments."""
    args, kwargs = arguments(example_input)
    return model(*args, **kwargs)


def arguments(example_input: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """An example input as the arguments of a call."""
    if isinstance(example_input, Mapping):
        return (), example_input
    return (example_input if isinstance(example_input, tuple | list) else (example_input,)), {}


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument, or the one named as PyTorch's layers name it, or else the first that is named."""
    return args[0] if args else kwargs[_name(kwargs)]


def with_input(args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Arguments:
    """The same call with another input."""
    return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, _name(kwargs): x})


def _name(kwargs: dict[str, Any]) -> str:
    return "input" if "input" in kwargs else next(iter(kwargs))
