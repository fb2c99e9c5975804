"""One rule for copies that have one each."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from apical.attaching.by_module import Rules, rules_of
from apical.per_copy import PerCopy
from apical.rules import Rule


def merged_by_layer(rules: Sequence[Rules], layers: Sequence[str], *, blocks: bool) -> dict[str, Rule]:
    """Layer name -> the one rule with which each copy learns by its own.

    Args:
        rules: one for each copy, as `attach` takes them. layers: names of all layers that learn.
        blocks: whether the signal enters at blocks (see `attach`, ``at=``).

    Raises:
        ValueError: if rules differ in what copies have to share.
    """
    chosen = [rules_of(one, layers) for one in rules]
    # Numbers would lie along other dimensions of the feedback of blocks than of the layers inside them.
    other = next((number for number, one in enumerate(chosen, 1) if one != chosen[0]), None) if blocks else None
    if other is not None:
        raise ValueError(
            f"at= goes with one rule for all copies, and that of copy {other} differs from the first's; give all the same, "
            "leave at= out, or train those one by one"
        )
    return {name: merged([own[name] for own in chosen]) for name in layers}


def merged(rules: Sequence[Rule]) -> Rule:
    """One rule for copies that have one each: where their numbers differ, it holds a `PerCopy` of them.

    >>> import apical
    >>> merged([apical.rule("kp", epsilon=0.1), apical.rule("kp", epsilon=0.2)]).plasticity.epsilon
    (0.1, 0.2)

    Raises:
        ValueError: if they differ in more than numbers, or in a number that copies have to share.
    """
    first = rules[0]
    if all(rule == first for rule in rules):
        return first
    dimension = int(first.direct)
    pathways, plasticities = [one.pathway for one in rules], [one.plasticity for one in rules]
    for own in (pathways, plasticities):
        _check_kinds(own, rules)
    decays = {rule.weight_decay for rule in rules}
    return dataclasses.replace(
        first,
        pathway=_merged(first.name, pathways, dimension),
        plasticity=_merged(first.name, plasticities, dimension),
        name=", ".join(dict.fromkeys(rule.name for rule in rules)),
        # The optimizer's, which has one for all; Replicas.tune gives copies their own.
        weight_decay=first.weight_decay if len(decays) == 1 else 0.0,
    )


def _check_kinds(parts: Sequence[Any], rules: Sequence[Rule]) -> None:
    other = next((number for number, part in enumerate(parts) if type(part) is not type(parts[0])), None)
    if other is not None:
        raise ValueError(
            f"copies can't have other rules than the first: copy {other + 1} has '{rules[other].name}', the first "
            f"'{rules[0].name}'; copies may differ in a rule's numbers, not in its kind. Train those one by one"
        )


def _merged(rule: str, parts: Sequence[Any], dimension: int) -> Any:
    result = copy.copy(parts[0])
    able = [field.name for field in dataclasses.fields(result) if field.metadata.get("per_copy")]
    for field in dataclasses.fields(result):
        values = [getattr(part, field.name) for part in parts]
        if all(value == values[0] for value in values):
            continue
        if field.name not in able:
            raise ValueError(
                f"copies of rule '{rule}' can't have different values of {field.name} ({', '.join(map(repr, values))}); "
                + (f"they may differ in {', '.join(able)}. " if able else "they may differ in none of its values. ")
                + "Train those one by one"
            )
        # Not by its constructor: every value has been checked by the part it comes from.
        object.__setattr__(result, field.name, PerCopy(values, dimension))
    return result
