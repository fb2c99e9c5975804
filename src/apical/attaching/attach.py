"""Turning a model into one that learns by a rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apical.attaching import connectivity as connections
from apical.attaching import conversion, faults
from apical.attaching.by_module import Rules, rules_of
from apical.attaching.connectivity import Connectivities
from apical.attaching.dry_run import check_wiring, dry_run
from apical.attaching.samples import check_samples
from apical.attaching.surgery import Surgery
from apical.attaching.ties import of_ties
from apical.composites import unfuse
from apical.distributed import refuse_shards, refuse_wrapped
from apical.learner import Learner
from apical.nested import Which
from apical.per_copy import copies_in, streams
from apical.rules import Rule, as_rule
from apical.synapses.registry import meet, synapse_type

ExampleInput = Tensor | Sequence[Any] | Mapping[str, Any]


class Attachable(nn.Module, ABC):
    """A module around another network, which is the one that learns: `attach` leaves the whole call to it."""

    @property
    @abstractmethod
    def attached_network(self) -> nn.Module:
        """The network inside, to which the learner belongs."""

    @abstractmethod
    def attach_inside(self, rule: Rules | Sequence[Rules], **options: Any) -> Learner:
        """Attach the network inside. Rule and options are all those of `attach`, in terms of this module."""


def attach(
    model: nn.Module,
    rule: Rules | Sequence[Rules],
    *,
    example_input: ExampleInput | None = None,
    at: Sequence[str] | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    output: Which = None,
    connectivity: Connectivities | None = None,
) -> Learner:
    """Make `model` learn by `rule`. The model is changed in place and stays an ordinary `nn.Module`.

    Every supported layer becomes a synapse (its class is swapped; parameters keep identity and name). Forward passes compute
    what they did; ``loss.backward()`` then fills gradients by the rule. Make the optimizer after this call: some rules
    add trainable feedback to ``model.parameters()``.

    Args:
        model: any network whose weights lie in layers that apical knows (see `register_synapse`), or `Replicas` of one.
        rule: a name from `apical.rules`, or a `Rule`; or a dict from module names to these, where each layer takes the
            rule of the nearest module around it ("" is the whole model): {"": "kp", "layer1": "wm", "fc": "bp"}. For
            `Replicas` also a list of these, one for each copy, that differ in numbers such as epsilon, noise or rate.
        example_input: one input batch as the model takes it: a tensor, a tuple of arguments, or a dict of keyword
            arguments. Needed by direct and indirect rules, whose feedback is shaped by a dry run (in eval mode and
            without touching random state). Others use it to drop at once the feedback of synapses that no signal leaves;
            without it, the first forward pass takes that out of use, and its place in the model's parameters stays. For
            `Replicas` a batch for each copy, [copies, N, *], on which copies are compared with the single network, unless
            they have been.
        at: direct rules only: names of modules at whose outputs the signal enters, instead of at every synapse's
            input. Inside such a block the signal goes layer by layer through feedback of the same plasticity.
        generator: source of the feedback's randomness. None: one seeded from PyTorch's global generator, so
            ``torch.manual_seed`` makes it repeatable. For `Replicas` also a list, one for each copy, which then draws
            what it would alone.
        output: which tensor of the model's output the loss is made of, where the model returns more than a tensor:
            a key or attribute, an index, or a function of the output.
        connectivity: the fraction of connections that exist, drawn for weights and feedback apart and fixed from then on;
            a number, a `Connectivity`, or a dict from module names to these, where each layer takes that of the nearest
            module around it and is fully connected without any. {"": 0.5, "fc": 1.0} thins all but one (amit2019's
            code), {"fc": 0.5} that one alone (lillicrap2016 [R]). None: all exist. Absent weights are set to zero here.

    Returns:
        The `Learner`.

    >>> import apical
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> learner = apical.attach(model, "fa", generator=torch.Generator().manual_seed(0))
    >>> learner
    Learner(Sequential, rule='fa', synapses=2)
    >>> learner.synapses["2"].feedback.shape
    torch.Size([2, 3])

    Raises:
        TypeError: model or rule of the wrong kind.
        ValueError: what can't be attached, all faults at once, each with a way out. The model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, Attachable):
        return model.attach_inside(
            rule, example_input=example_input, at=at, generator=generator, output=output, connectivity=connectivity
        )
    faults.refuse_attached(model)
    refuse_shards(model)
    meet(model)
    undo = unfuse(model)
    try:
        return _attach(model, rule, example_input, at, generator, output, connectivity, undo)
    except Exception:
        for one in reversed(undo):
            one()
        raise


def _attach(
    model: nn.Module,
    rule: Rules | Sequence[Rules],
    example_input: Any,
    at: Sequence[str] | None,
    generator: Any,
    output: Which,
    connectivity: Connectivities | None,
    undo: Sequence[Callable[[], Any]],
) -> Learner:
    """Attach a model whose composite layers are taken apart; `undo` puts them together again."""
    rules = _checked(model, rule, example_input, at)
    if trained := next((one.name for one in rules.values() if one.trains), None):
        refuse_wrapped(model, trained)
    shares = connections.connectivities_of(connectivity, [*rules, *(at or ())])
    connections.check(model, rules, shares)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator, got {generator!r}; torch.Generator().manual_seed(0) makes one"
        )
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    learner = Learner(model, rules, streams(generator, copies_in(model)), output, shares)
    # Before any layer is a synapse, so that whatever fails leaves the model as it was.
    direct = any(one.direct for one in rules.values())
    shown = None
    if example_input is not None:
        try:
            shown = dry_run(model, list(rules), example_input, at, output, direct=direct)
        except ValueError as error:
            # Of these a pass would have told.
            undecided = faults.sentences(faults.of_layers(model)[1])
            faults.refuse(model, rules.values(), [*undecided, str(error)] if undecided else [])
            raise
        faults.refuse(model, rules.values(), faults.sentences(faults.of_uses(model, rules, shown, at)))
        learner.elementwise = faults.elementwise(model)
        check_wiring(model, rules, shown, at)
        if learner.copies == 1:
            positions = any(form.lead > 1 for form in shown.forms.values())
            check_samples(model, rules, example_input, at, output, positions=positions)
    try:
        Surgery(learner, rule, connectivity, at, example_input, undo).convert(shown)
    except Exception:
        learner.detach()
        raise
    learner.undo[:0] = undo
    return learner


def _checked(model: nn.Module, rule: Any, example_input: Any, at: Sequence[str] | None) -> dict[str, Rule]:
    """Name -> rule of every layer that becomes a synapse; a ValueError with every fault found, if there is one."""
    names = [name for name, module in model.named_modules() if synapse_type(module) is not None]
    layers, undecided = faults.of_layers(model)
    if example_input is None and undecided:
        layers |= {
            name: f"{sentence}; or give example_input, which shows whether they are"
            for name, sentence in undecided.items()
        }
    found = faults.sentences(layers)
    if not names and not found and not undecided:
        found.append("the model has no layer with weights, so there is nothing to learn")
    # Wrong names before faults of the model.
    given = [as_rule(one) for one in (rule.values() if isinstance(rule, Mapping) else [rule])]
    chosen = rules_of(rule, names) if names else {}
    different = list(dict.fromkeys(chosen.values() if chosen else given))
    found += faults.of_rules(model, different, example_input, at)
    found += faults.sentences(of_ties(model, chosen, at))
    faults.refuse(model, different, found)
    return chosen


def learner_of(model: nn.Module) -> Learner:
    """The learner of an attached model, for instance of a deep copy or after unpickling.

    >>> import apical, copy
    >>> model = nn.Linear(4, 2)
    >>> learner = apical.attach(model, "fa")
    >>> learner_of(model) is learner, learner_of(copy.deepcopy(model)) is learner
    (True, False)

    Raises:
        ValueError: if nothing is attached to `model`.
    """
    found = attached(model)
    if found is None:
        raise ValueError("nothing is attached to this model; call apical.attach(model, rule)")
    return found


def attached(model: nn.Module) -> Learner | None:
    """The learner of `model`; None if nothing is attached to it."""
    return vars(model.attached_network if isinstance(model, Attachable) else model).get(conversion.LEARNER)
