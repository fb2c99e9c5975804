"""Whether a value is of the kind that an annotation asks for: options come from text, and configs from files."""

from __future__ import annotations

import dataclasses
import difflib
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


def nearest(name: str, names: Iterable[str]) -> str:
    """Words that offer what `name` may have meant."""
    names = list(names)
    folded = {n.lower(): n for n in names}
    near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"the names are {', '.join(names)}"
