"""What can't be attached, found before anything is changed: all faults at once, each with a way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from apical.copies import copies_in
from apical.probe import Probed
from apical.registry import faults, synapse_type
from apical.rules import Rule, as_rule
from apical.sharing import Rules, shared_out
from apical.synapse import Synapse


def layers(model: nn.Module, rule: Rules, example_input: Any, at: Sequence[str] | None) -> dict[str, Rule]:
    """Layers that become synapses, each with its rule, or an error with every fault found."""
    modules = dict(model.named_modules())
    attached = [name for name, module in modules.items() if isinstance(module, Synapse)]
    if attached:
        raise ValueError(
            f"'{attached[0]}' is attached already; detach it first, with learner.detach() or "
            "apical.learner_of(the model that was attached).detach()"
        )
    found = faults(model)
    names = [name for name, module in modules.items() if synapse_type(module) is not None]
    if not names and not found:
        found.append("the model has no layer with weights, so there is nothing to learn")
    # Wrong names before faults of the model.
    given = [as_rule(one) for one in (rule.values() if isinstance(rule, Mapping) else [rule])]
    chosen = shared_out(rule, names) if names else {}
    different = list(dict.fromkeys(chosen.values() if chosen else given))
    wired = next((one for one in different if one.pathway.wired), None)
    if wired is not None and example_input is None:
        found.append(
            f"rule '{wired.name}' needs example_input, one batch as the model takes it: its feedback has the shape of the "
            "activities it reaches"
        )
    if copies_in(model) > 1:
        found += [
            f"rule '{one.name}' compares losses of whole networks, which copies side by side would share; train them one by one"
            for one in different
            if (one.pathway.listens and not one.pathway.replicates)
            or (one.plasticity.listens and not one.plasticity.replicates)
            or (one.pathway.wired and one.plasticity.adapts)
        ]
    chained = next((one for one in different if one.pathway.chained), None)
    if chained is not None and len(different) > 1:
        found.append(
            f"rule '{chained.name}' sends its signal through all layers in turn, so it can't be mixed with others"
        )
    if at is not None and len(different) > 1:
        found.append("at= goes with one rule for the whole model; leave it out, or give one direct rule")
    elif at is not None and different:
        found += _block_faults(modules, different[0], at)
    if found:
        raise ValueError(
            f"can't attach {', '.join(repr(one.name) for one in different)} to {type(model).__name__}:\n"
            + "\n".join(f"- {f}" for f in found)
        )
    return chosen


def _block_faults(modules: dict[str, nn.Module], rule: Rule, at: Sequence[str]) -> list[str]:
    found = []
    if rule.pathway.name != "direct":
        found.append(
            f"at= names where a direct signal enters, but rule '{rule.name}' is {rule.pathway.name}; leave it out"
        )
    if isinstance(at, str):
        return [*found, f"at= takes a list of module names, got the string {at!r}; write at=[{at!r}]"]
    if not isinstance(at, Collection):  # What can be gone through only once would be empty the second time.
        some = next((name for name, module in modules.items() if name and synapse_type(module) is None), "name")
        return [*found, f"at= takes a list of module names, got {at!r}; write at=[{some!r}], for instance"]
    if not at:
        found.append("at= is empty; name at least one module, or leave it out to tap every synapse's input")
    for name in at:
        if not isinstance(name, str) or name not in modules or name == "":
            some = ", ".join(list(modules)[1:13])
            found.append(
                f"at= names {name!r}, but the model has no such module; it has {some}{', ...' if len(modules) > 13 else ''}"
            )
        elif synapse_type(modules[name]) is not None:
            found.append(
                f"at= names {name!r}, which is a synapse itself; name the layer after it, or a block around it"
            )
        elif "feedback" in (*modules[name]._parameters, *modules[name]._buffers, *vars(modules[name])):
            found.append(f"at= names {name!r}, which has an attribute 'feedback' of its own; name a module around it")
    return found


def wiring(rules: dict[str, Rule], shown: Probed, at: Sequence[str] | None) -> None:
    """What the dry run showed, for rules whose signal comes from the output."""
    rule = next((one for one in rules.values() if one.pathway.wired), None)
    if rule is None:
        return
    if shown.outputs is None:
        raise ValueError(
            "the output that the loss is made of depends on no weights"
            + (f"; is one of at={list(at)} the output itself? Name modules before it" if at else "")
        )
    folded = next((c for c in shown.calls if c.signal and c.rows != shown.rows and rules[c.name].pathway.wired), None)
    if folded is not None and not at:
        raise ValueError(
            f"activity at '{folded.name}' has {folded.rows} rows, but the output has {shown.rows}; a direct signal needs the "
            "batch in the first dimension throughout (name whole blocks with at=[...], or keep positions in dimensions of "
            "their own)"
        )
    never = [name for name in (at or ()) if name not in shown.blocks]
    if never:
        raise ValueError(
            f"at= names {never}, which example_input never reaches; name modules that the forward pass calls"
        )
    if not rule.pathway.chained:
        return
    for before, after in pairwise(shown.calls):
        if after.signal and before.output != after.input:
            raise ValueError(
                f"rule '{rule.name}' sends its signal forward through the layers, so what lies between two synapses has to keep "
                f"shape, but '{before.name}' gives {list(before.output)} and '{after.name}' takes {list(after.input)}; use 'dfa'"
            )
