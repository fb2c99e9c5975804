"""Which layer takes what: rules, and other settings, given by the names of modules around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from apical.rules import Rule, as_rule

Chosen = TypeVar("Chosen")

Rules = str | Rule | Mapping[str, str | Rule]
"""One rule for the whole model, or module names -> rules: each synapse takes that of the nearest module around it."""


def _around(layer: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that are the layer's own, or of a module around it."""
    return [name for name in names if name in ("", layer) or layer.startswith(f"{name}.")]


def by_nearest(argument: str, chosen: Mapping[str, Chosen], layers: Sequence[str]) -> dict[str, Chosen]:
    """Layer name -> what is chosen for the nearest module around it; layers with nothing around them are left out.

    Raises:
        ValueError: if a name of `argument`, which chooses, covers no layer.
    """
    idle = [name for name in chosen if not any(name in _around(layer, chosen) for layer in layers)]
    if idle:
        raise ValueError(
            f"{argument} names {', '.join(map(repr, idle))}, where the model has no layer that learns by a rule; its layers "
            f"are {', '.join(map(repr, layers))}"
        )
    return {layer: chosen[max(near, key=len)] for layer in layers if (near := _around(layer, chosen))}


def rules_of(value: Rules, layers: Sequence[str]) -> dict[str, Rule]:
    """Layer name -> rule.

    Raises:
        ValueError: if a name covers no layer, or a layer is covered by none.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(layers, as_rule(value))
    chosen = {name: as_rule(given) for name, given in value.items()}
    found = by_nearest("rule", chosen, layers)
    bare = [layer for layer in layers if layer not in found]
    if bare:
        raise ValueError(
            f"rule says nothing about {', '.join(map(repr, bare))}; name them, or add '': the rule for all layers not named"
        )
    return found


def still_there(value: Any, layers: Sequence[str]) -> Any:
    """A setting by module names, without those that cover no layer any more."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: one
        for name, one in value.items()
        if any(name in ("", layer) or layer.startswith(f"{name}.") for layer in layers)
    }
