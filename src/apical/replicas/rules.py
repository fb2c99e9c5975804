"""One rule for copies that have one each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apical.per_copy import PerCopy

if TYPE_CHECKING:
    from apical.rules import Rule


def merged(rules: Sequence[Rule]) -> Rule:
    """One rule for copies that have one each.

    Raises:
        ValueError: if they differ in more than numbers, or in a number that copies have to share.
    """
    first = rules[0]
    if all(rule == first for rule in rules):
        return first
    parts = {}
    for part in ("pathway", "plasticity"):
        own = [getattr(rule, part) for rule in rules]
        other = next((number for number, value in enumerate(own) if type(value) is not type(own[0])), None)
        if other is not None:
            raise ValueError(
                f"copies can't have other rules than the first: copy {other + 1} has '{rules[other].name}', the first "
                f"'{first.name}'; copies may differ in a rule's numbers, not in its kind. Train those one by one"
            )
        parts[part] = _merged(first.name, own, int(first.pathway.wired))
    decays = {rule.weight_decay for rule in rules}
    return dataclasses.replace(
        first,
        **parts,
        name=", ".join(dict.fromkeys(rule.name for rule in rules)),
        # The optimizer's, which has one for all; Replicas.tune gives copies their own.
        weight_decay=first.weight_decay if len(decays) == 1 else 0.0,
    )


def _merged(rule: str, parts: Sequence[Any], dim: int) -> Any:
    result = copy.copy(parts[0])
    fields = dataclasses.fields(result)
    for field in fields:
        values = [getattr(part, field.name) for part in parts]
        if all(value == values[0] for value in values):
            continue
        if not field.metadata.get("per_copy"):
            able = [one.name for one in fields if one.metadata.get("per_copy")]
            raise ValueError(
                f"copies of rule '{rule}' can't have different values of {field.name} ({', '.join(map(repr, values))}); "
                + (f"they may differ in {', '.join(able)}. " if able else "they may differ in none of its values. ")
                + "Train those one by one"
            )
        # Not by its constructor: every value has been checked by the part it comes from.
        object.__setattr__(result, field.name, PerCopy(values, dim))
    return result
