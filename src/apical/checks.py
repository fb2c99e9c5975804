"""What a value has to be, and the sentence that says so: kinds from annotations, numbers within bounds, names of a table.

Options come from text and configurations from files, so kinds are checked when values are made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a name", types.NoneType: "None"}


def fits(value: Any, kind: Any) -> bool:
    """Whether `value` is of `kind`; True and False are no numbers, and a list will do for a tuple."""
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if outer is Literal:
        return value in inner
    if outer is Callable:
        return callable(value)
    if outer is tuple:
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    if outer in (int, float):
        return isinstance(value, Integral if outer is int else Real) and not isinstance(value, bool)
    return isinstance(value, outer)


def check_fields(value: Any) -> None:
    """Raise a ValueError that names every field of a dataclass which does not fit its annotation."""
    kinds = get_type_hints(type(value))
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    bad = [
        f"{name} must be {told(kinds[name])}, got {one!r}" for name, one in given.items() if not fits(one, kinds[name])
    ]
    if bad:
        raise ValueError("; ".join(bad))


def told(kind: Any) -> str:
    """`kind` in words.

    >>> told(float | None), told(Literal["sgd", "ridge"])
    ('a number or None', "'sgd' or 'ridge'")
    """
    *others, last = _told(kind)
    return f"{', '.join(others)} or {last}" if others else last


def _told(kind: Any) -> list[str]:
    outer, inner = get_origin(kind) or kind, get_args(kind)
    if outer in (Union, types.UnionType):
        return [word for one in inner for word in _told(one)]
    if outer is Literal:
        return [repr(one) for one in inner]
    if outer is tuple:
        return [f"a list, each of it {told(inner[0])}"]
    return ["a function" if outer is Callable else _WORDS.get(outer, f"a {outer.__name__}")]


def number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    whole: bool = False,
    otherwise: str = "",
) -> None:
    """Raise a ValueError unless `value` is a finite number within the bounds. True and False are no numbers.

    Args:
        name: of the argument. least: smallest value allowed. above: value that it has to exceed.
        whole: whether it has to be a whole number. otherwise: what follows in the sentence, e.g. a reason or a way out.

    >>> number("rate", -0.1, least=0)
    Traceback (most recent call last):
    ValueError: rate must be a number of at least 0, got -0.1
    """
    if isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and math.isfinite(value):
        given = float(value)
        if (least is None or given >= least) and (above is None or given > above):
            return
    noun = "whole number" if whole else "number"
    if above == 0:
        told = f"a positive {noun}"
    elif above is not None:
        told = f"a {noun} above {above:g}"
    else:
        told = f"a {noun}" if least is None else f"a {noun} of at least {least:g}"
    raise ValueError(f"{name} must be {told}, got {value!r}{otherwise}")


LARGEST_SEED = 10**13
"""PyTorch's seeds are below 2**64, and the order of an epoch's samples is drawn from a million times the run's seed."""


def check_seed(name: str, seed: int, count: int = 1) -> None:
    """Raise a ValueError unless `count` seeds from `seed` on can all be drawn from.

    >>> check_seed("first_seed", 10**13, 2)
    Traceback (most recent call last):
    ValueError: first_seed must be at most 9999999999999 (with 2 seeds), got 10000000000000
    """
    if seed < 0:
        raise ValueError(f"{name} must be at least 0, got {seed}")
    if seed + count - 1 > LARGEST_SEED:
        told = f" (with {count} seeds)" if count > 1 else ""
        raise ValueError(f"{name} must be at most {LARGEST_SEED - count + 1}{told}, got {seed}")


def near(name: str, names: Iterable[str], *, cutoff: float = 0.5) -> list[str]:
    """Up to three of `names` that are spelled like `name`, whatever the case, the nearest first."""
    folded = {n.lower(): n for n in names}
    return [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=cutoff)]


def nearest(name: str, names: Iterable[str], written: Callable[[str], str] = repr) -> str:
    """Words that offer the names that `name` may have meant, or all of them where none is near.

    >>> nearest("resnet-20", ["mlp", "resnet20"]), nearest("zzz", ["mlp", "resnet20"])
    ("did you mean 'resnet20'?", 'the names are mlp, resnet20')
    """
    names = list(names)
    found = near(name, names)
    return f"did you mean {' or '.join(map(written, found))}?" if found else f"the names are {', '.join(names)}"
