"""What can't be attached, found before anything is changed: all faults at once, each with a way out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from apical.pathways import Indirect
from apical.per_copy import copies_in
from apical.plasticity import Phased
from apical.rules import Rule
from apical.synapses import registry
from apical.synapses.registry import ELEMENTWISE, added, synapse_type
from apical.synapses.synapse import Synapse

ITSELF = "(the model itself)"
"""Name of the whole model."""


def of_layers(model: nn.Module, known: Collection[nn.Module] = ()) -> list[str]:
    """Every layer of `model` whose weights no known synapse covers, each as a sentence with the way out.

    Modules in `known` are attached already; of those, only weights that are computed anew are a fault.
    """
    found: list[str] = []
    reported: list[str] = []
    for name, module in model.named_modules():
        covered = name.startswith(tuple(reported)) or (module in known and not _computed(module))
        fault = None if covered else _fault(module)
        if fault is not None:
            found.append(f"{name or ITSELF}: {fault}")
            # What computes a parametrized weight is part of the same fault.
            reported.append(f"{name}.parametrizations.".lstrip("."))
    return found


def _fault(module: nn.Module) -> str | None:
    kind = type(module)
    own = [key for key, parameter in module._parameters.items() if parameter is not None]
    if any(parameter is not None and parameter.is_complex() for parameter in module._parameters.values()):
        return "complex weights are not supported; use pairs of real ones"
    if kind in registry.SYNAPSES:
        if registry.SYNAPSES[kind] is None:
            return None
    elif not own and not parametrize.is_parametrized(module):
        return None
    if issubclass(kind, LazyModuleMixin):
        return f"{kind.__name__} has no shape yet; run one forward pass before attach"
    if computed := _computed(module):
        return (
            f"{kind.__name__} computes {', '.join(computed)} anew for every forward pass, from values that no synapse covers; "
            f"call {' and '.join(computed.values())} first"
        )
    if kind in registry.SYNAPSES:
        for key in ("weight", "bias"):
            if key not in own and (key == "weight" or isinstance(getattr(module, key, None), Tensor)):
                return f"{kind.__name__} has its {key} as no parameter; make it an nn.Parameter"
        return None
    if isinstance(module, ELEMENTWISE):
        own = added(module)
    return _unknown(module, own) if own else None


def _computed(module: nn.Module) -> dict[str, str]:
    """Name -> the call that makes it a parameter again, for every weight that PyTorch computes from other values."""
    if parametrize.is_parametrized(module):
        names = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        return {key: f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{key}')" for key in names}
    # What hooks of the older functions compute stands beside what they store under such names.
    calls = {"_g": "remove_weight_norm", "_u": "remove_spectral_norm", "_mask": "prune.remove"}
    stored = {**module._parameters, **module._buffers}
    return {
        key: f"torch.nn.utils.{call}(layer, '{key}')"
        for key, value in vars(module).items()
        for suffix, call in calls.items()
        if isinstance(value, Tensor) and f"{key}{suffix}" in stored
    }


def _unknown(module: nn.Module, own: list[str]) -> str:
    kind = type(module)
    known = next((base for base in kind.__mro__[1:] if registry.SYNAPSES.get(base) is not None), None)
    if known is not None:
        return (
            f"{kind.__name__} subclasses {known.__name__} and may compute something else; if it does not, call "
            f"apical.register_synapse({kind.__name__}, apical.{registry.SYNAPSES[known].__name__}), "  # type: ignore[union-attr]
            f"else register a Synapse of its own"
        )
    if isinstance(module, nn.MultiheadAttention):
        return (
            f"{kind.__name__} holds its projections as raw weights; write the attention with nn.Linear projections and "
            "torch.nn.functional.scaled_dot_product_attention"
        )
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind.__name__} holds its weights in one fused kernel; write the cell with nn.Linear layers"
    return (
        f"{kind.__name__} holds {', '.join(own)}, which no synapse covers; move weights into nn.Linear or nn.Conv layers, "
        f"register a Synapse with apical.register_synapse({kind.__name__}, ...), or, for parameters that are no weights "
        f"(a bias, a scale, a token), apical.register_synapse({kind.__name__}, None)"
    )


def of_rules(model: nn.Module, rules: Sequence[Rule], example_input: Any, at: Sequence[str] | None) -> list[str]:
    """Every way in which different rules don't go with the model, with each other, or with what `attach` was given."""
    found: list[str] = []
    direct = next((one for one in rules if one.direct), None)
    if direct is not None and example_input is None:
        found.append(
            f"rule '{direct.name}' needs example_input, one batch as the model takes it: its feedback has the shape of the "
            "activities it reaches"
        )
    if copies_in(model) > 1:
        found += [
            f"rule '{one.name}' compares losses of whole networks, which copies side by side would share; train them one by one"
            for one in rules
            if one.direct and isinstance(one.plasticity, Phased)
        ]
    chained = next((one for one in rules if isinstance(one.pathway, Indirect)), None)
    if chained is not None and len(rules) > 1:
        found.append(
            f"rule '{chained.name}' sends its signal through all layers in turn, so it can't be mixed with others"
        )
    if at is not None and len(rules) > 1:
        found.append("at= goes with one rule for the whole model; leave it out, or give one direct rule")
    elif at is not None and rules:
        found += _block_faults(dict(model.named_modules()), rules[0], at)
    return found


def refuse_attached(model: nn.Module) -> None:
    """Raise a ValueError if some layer of the model is a synapse already."""
    attached = [name for name, module in model.named_modules() if isinstance(module, Synapse)]
    if attached:
        raise ValueError(
            f"'{attached[0]}' is attached already; detach it first, with learner.detach() or "
            "apical.learner_of(the model that was attached).detach()"
        )


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
