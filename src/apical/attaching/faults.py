"""What can't be attached, found before anything is changed: all faults at once, each with a way out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from apical.attaching.ties import follows, parted
from apical.composites import Unfused
from apical.pathways import Indirect
from apical.per_copy import copies_in
from apical.plasticity import Phased, Transport
from apical.rules import Rule
from apical.synapses import registry
from apical.synapses.registry import ELEMENTWISE, added, computed_names, synapse_type
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.attaching.dry_run import Shown
    from apical.attaching.uses import Use

ITSELF = "(the model itself)"
"""Name of the whole model."""


def of_layers(model: nn.Module, known: Collection[nn.Module] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """Name -> sentence for every layer that can't be attached; and for those of which a dry run has to tell.

    The latter hold parameters that no known synapse covers. What a forward pass does with them decides whether they are weights.
    Modules in `known` are attached already.
    """
    found: dict[str, str] = {}
    open_: dict[str, str] = {}
    computed: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(f"{one}.parametrizations.".lstrip(".") for one in computed)):
            continue  # What computes a parametrized weight belongs to the layer.
        if computes := bool(computed_names(module)):
            computed.append(name)
        if module in known:
            if computes and not getattr(module, "computed", False):
                found[name] = _takes_off(module)
            continue
        fault = _fault(module)
        if fault is not None:
            found[name] = fault
        elif own := uncovered(module):
            open_[name] = _unknown(module, own)
    return found, open_


def of_uses(
    model: nn.Module, rules: Mapping[str, Rule], shown: Shown, at: Sequence[str] | None = None
) -> dict[str, str]:
    """Name -> sentence for every layer with a parameter that a forward pass uses as a weight where no rule has a part in it.

    Of a layer whose rule is backpropagation, any use is by the rule. Feedback that follows weights can't follow them where an
    activity meets them in a place of which it does not hear.

    Args:
        model: not attached. rules: name of a layer that is to become a synapse -> its rule. shown: by the forward pass.
        at: names of blocks at which direct signals enter.
    """
    modules, found, covered, uses = dict(model.named_modules()), {}, set(), shown.uses
    for name, rule in rules.items():
        for key, parameter in modules[name].named_parameters():
            covered.add(id(parameter))
            if isinstance(rule.plasticity, Transport):
                continue
            use = uses.products.get(id(parameter)) or uses.multiplied.get(id(parameter))
            if use is not None and name not in found:
                found[name] = outside(type(modules[name]), key, use)
        use = uses.met.get(id(modules[name]._parameters.get("weight")))
        silent = name in shown.reached and shown.signal(name) is None  # Without feedback that could follow.
        if use is not None and name not in found and not silent and follows(rule, at):
            found[name] = parted(type(modules[name]), rule, use)
    for name, module in judged(model):
        for key, parameter in module._parameters.items():
            use = uses.products.get(id(parameter))
            if use is not None and id(parameter) not in covered and name not in found:
                found[name] = weight(module, key, use)
    return found


def judged(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with names, without those registered as none that a rule has to know."""
    for name, module in model.named_modules():
        if registry.SYNAPSES.get(type(module), module) is not None:
            yield name, module


def outside(kind: type[nn.Module], key: str, use: Use) -> str:
    """The sentence for a layer with a parameter that is a weight elsewhere, too."""
    return (
        f"the {key} of this {kind.__name__} is used outside of the layer's own call, in {use.operation} at {use.place}, "
        "where autograd would carry the error back through it, as backpropagation does; call the layer, or, to use one weight "
        f"twice, call a second {kind.__name__} that has the same parameter; or give this layer the rule 'bp', with "
        "rule={'': ..., its name: 'bp'}"
    )


def weight(module: nn.Module, key: str, use: Use) -> str:
    """The sentence for a module with a parameter of no layer that is a weight."""
    seen = f"its {key} is a weight, with which an activity is multiplied in {use.operation} at {use.place}"
    if own := uncovered(module):
        return f"{_unknown(module, own)} ({seen})"
    way = "give it to an nn.Linear as well (head.weight = embedding.weight), and call that"
    return (
        f"{type(module).__name__}: {seen}, where autograd would carry the error back through it, as backpropagation does; "
        + (way if isinstance(module, nn.Embedding) else "move it into an nn.Linear or nn.Conv layer")
    )


def refuse(model: nn.Module, rules: Iterable[Rule], found: Sequence[str]) -> None:
    """Raise a ValueError with all that was found, if there is any."""
    if found:
        names = ", ".join(repr(name) for name in dict.fromkeys(one.name for one in rules))
        kind = type(model).plain if isinstance(model, Unfused) else type(model)
        raise ValueError(f"can't attach {names} to {kind.__name__}:\n" + "\n".join(f"- {f}" for f in found))


def elementwise(model: nn.Module) -> frozenset[str]:
    """Names of modules with parameters that no synapse covers, once a dry run has shown that they are no weights."""
    return frozenset(name for name, module in model.named_modules() if uncovered(module))


def sentences(found: Mapping[str, str]) -> list[str]:
    """One sentence for all layers of which the same is to be said."""
    alike: dict[str, list[str]] = {}
    for name, sentence in found.items():
        alike.setdefault(sentence, []).append(name or ITSELF)
    return [f"{_listed(names)}: {sentence}" for sentence, names in alike.items()]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 5 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def uncovered(module: nn.Module) -> list[str]:
    """Names of a module's own parameters of which its kind does not tell what becomes of them."""
    if type(module) in registry.SYNAPSES or isinstance(module, Unfused) or synapse_type(module) is not None:
        return []
    if isinstance(module, ELEMENTWISE):
        return added(module)
    return [key for key, parameter in module._parameters.items() if parameter is not None]


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
    computed = computed_names(module)
    if computed and synapse_type(module) is None:
        return _takes_off(module)
    if kind in registry.SYNAPSES:
        for key in ("weight", "bias"):
            if key in computed:
                continue
            if key not in own and (key == "weight" or isinstance(getattr(module, key, None), Tensor)):
                return f"{kind.__name__} has its {key} as no parameter; make it an nn.Parameter"
        if "forward" in vars(module):
            return (
                f"{kind.__name__} has a forward of its own, as an attribute, that may compute something else; "
                "delete it (del layer.forward), or make it a class and register a Synapse for that"
            )
    return None


def _takes_off(module: nn.Module) -> str:
    computed = computed_names(module)
    calls = " and ".join(f"torch.nn.utils.{_call_off(module, key)}(layer, '{key}')" for key in computed)
    return (
        f"{type(module).__name__} computes {', '.join(computed)} anew for every forward pass, from values that no "
        f"synapse covers; call {calls} first"
    )


def _call_off(module: nn.Module, key: str) -> str:
    """The function of torch.nn.utils that makes a computed weight a parameter again."""
    if parametrize.is_parametrized(module):
        return "parametrize.remove_parametrizations"
    calls = {"_g": "remove_weight_norm", "_u": "remove_spectral_norm", "_mask": "prune.remove"}
    return next(call for suffix, call in calls.items() if f"{key}{suffix}" in {**module._parameters, **module._buffers})


def _unknown(module: nn.Module, own: list[str]) -> str:
    kind = type(module)
    known = next((base for base in kind.__mro__[1:] if registry.SYNAPSES.get(base) is not None), None)
    if known is not None:
        name = kind.__name__ if kind.__name__ != known.__name__ else f"{kind.__module__}.{kind.__name__}"
        return (
            f"{name} subclasses {known.__name__} and may compute something else; if it does not, call "
            f"apical.register_synapse({kind.__name__}, apical.{registry.SYNAPSES[known].__name__}), "  # type: ignore[union-attr]
            f"else register a Synapse of its own"
        )
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
