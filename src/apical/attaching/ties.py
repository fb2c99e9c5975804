"""What feedback that learns with the weights could not follow: increments that these get elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from apical.pathways import LayerWise
from apical.plasticity import Trained
from apical.rules import Rule
from apical.synapses.ties import LOOKUPS, RENORMALIZES

if TYPE_CHECKING:
    from apical.attaching.uses import Use


def follows(rule: Rule, at: Sequence[str] | None) -> bool:
    """Whether feedback gets the increments of the weights; inside of blocks, any signal goes layer by layer."""
    return isinstance(rule.plasticity, Trained) and (at is not None or isinstance(rule.pathway, LayerWise))


def of_ties(model: nn.Module, rules: Mapping[str, Rule], at: Sequence[str] | None = None) -> dict[str, str]:
    """Name -> sentence for every module with a layer's weights that feedback which is to follow them could not follow there."""
    modules, found = dict(model.named_modules()), {}
    following = {modules[name]._parameters.get("weight"): name for name, rule in rules.items() if follows(rule, at)}
    following.pop(None, None)
    for name, module in modules.items():
        other = following.get(module._parameters.get("weight"))
        if other is None:
            continue
        if isinstance(module, LOOKUPS) and module.max_norm is not None:
            found[name] = RENORMALIZES
        elif name in rules and (rules[name].pathway, rules[name].plasticity) != (
            rules[other].pathway,
            rules[other].plasticity,
        ):
            found[name] = (
                f"'{other}' has the same weight, and rule '{rules[other].name}', by which feedback is to follow it "
                f"(Kolen-Pollack), but gets none of what it learns here by rule '{rules[name].name}'; give both one rule"
            )
    return found


def parted(kind: type[nn.Module], rule: Rule, use: Use) -> str:
    """The sentence for a layer whose weights an activity meets where the feedback does not hear of it."""
    return (
        f"the weight of this {kind.__name__} learns outside of the layer's own call, too, in {use.operation} at "
        f"{use.place}, where feedback that is to follow it (Kolen-Pollack, rule '{rule.name}') gets none of that; look rows "
        "up by an nn.Embedding that has the same parameter (embedding.weight = layer.weight), or give this layer another rule, "
        "with rule={'': ..., its name: 'fa'}"
    )
