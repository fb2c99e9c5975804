"""Surgery on a model after `attach`: noticed by the next pass that learns, and taken in by `Learner.refresh`.

A layer that was put in later would be taught by backpropagation, and one that is gone would still be measured.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from apical.attaching import connectivity as connections
from apical.attaching import conversion, faults
from apical.attaching.by_module import Rules, rules_of, still_there
from apical.attaching.dry_run import Shown, check_wiring, dry_run
from apical.composites import unfuse
from apical.nested import first_rows
from apical.phases.conditions import backpropagating
from apical.phases.phases import Phases
from apical.rules import Rule
from apical.synapses.registry import meet, synapse_type
from apical.synapses.storage import refuse_computed, sharding
from apical.synapses.synapse import Synapse
from apical.synapses.ties import follow_lookups

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.attaching.connectivity import Connectivities
    from apical.learner import Learner
    from apical.synapses.circuit import Circuit

FEW = 2
"""Samples of an example that are kept for later dry runs."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that may get children when they have none yet."""

_watching: weakref.WeakSet[Surgery] = weakref.WeakSet()
_registrations: list[Any] = []


class Surgery:
    """What a learner's model looked like when it was attached, and with which settings.

    Args:
        learner: whose model it is. rule, connectivity, at, example_input: as given to `apical.attach`.
    """

    _members: Collection[nn.Module] = ()

    def __init__(
        self,
        learner: Learner,
        rule: Rules | Sequence[Rules],
        connectivity: Connectivities | None,
        at: Sequence[str] | None,
        example_input: Any,
        apart: Sequence[Callable[[], Any]] = (),
    ) -> None:
        self.learner, self.apart = learner, list(apart)
        self.rule, self.connectivity, self.at = rule, connectivity, at
        self.example = None if example_input is None else first_rows(example_input, FEW)
        self._children: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []
        self._shapes: list[tuple[Synapse, torch.Size]] = []
        self._handle: RemovableHandle | None = None
        self._lookups: list[RemovableHandle] = []

    @property
    def synapses(self) -> Mapping[str, Synapse]:
        """Those of the learner."""
        return self.learner.synapses

    def watch(self, circuit: Circuit) -> None:
        """Notice changes from now on, in passes of the circuit's synapses."""
        circuit.home = weakref.ref(self)
        _watching.add(self)
        if not _registrations:
            _registrations.append(register_module_module_registration_hook(_registered))
            _registrations.append(register_module_parameter_registration_hook(_registered))

    def convert(self, shown: Shown | None, held: conversion.Held | None = None) -> None:
        """Convert the model, and notice changes from now on."""
        self.learner.surgery = self
        self.watch(self.learner.circuit)
        self.learner.undo.append(self._stop)
        conversion.convert(self.learner, shown, self.at, held)
        # Several, as one of them may be what is replaced.
        for synapse in (*self.synapses.values(),)[:: max(1, len(self.synapses) - 1)]:
            synapse.sentinel = True
        self._remember()

    def _remember(self) -> None:
        modules = list(self.learner.model.modules())
        self._children = [(one, dict(one._modules)) for one in modules if one._modules or isinstance(one, CONTAINERS)]
        self._shapes = [(synapse, synapse.weight_now.shape) for synapse in self.synapses.values()]
        self._members = set(modules)
        self._forget_handles()
        self._lookups = follow_lookups(self.learner.model, self.synapses.values())

    def _forget_handles(self) -> None:
        self.learner.circuit.suspected = False
        for handle in (self._handle, *self._lookups):
            if handle is not None:
                handle.remove()
        self._handle, self._lookups = None, []

    def look(self) -> None:
        """Raise a RuntimeError if the learner no longer fits the model."""
        for module, children in self._children:
            # In every pass: a comparison of dicts goes by the identity of the modules in them.
            if module._modules != children:
                self.examine()
                return

    def suspect(self) -> None:
        """Examine the model at its next pass that learns."""
        self.learner.circuit.suspected = True
        if self._handle is None:
            self._handle = self.learner.model.register_forward_pre_hook(self._at_next_pass, prepend=True)

    def _at_next_pass(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and self.learner.circuit.watched and not torch.compiler.is_compiling():
            self.examine()

    def _stop(self) -> None:
        _watching.discard(self)
        self.learner.surgery = None
        self._children, self._shapes, self._members = [], [], ()
        self._forget_handles()

    def covers(self, module: nn.Module) -> bool:
        """Whether the module belongs to the model."""
        return module in self._members

    def examine(self) -> None:
        """Raise a RuntimeError with all changes that a synapse has to do with; take in the others."""
        found = self._changes()
        if not found:
            self._remember()
            if (updater := self.learner.circuit.updater) is not None:
                updater.settle()
            return
        way_out = (
            "make replicas of the changed network anew"
            if self.learner.copies > 1
            else "call learner.refresh(), which apical.learner_of(model) has too: it attaches new layers, drops those that are "
            "gone and keeps the feedback of all others; give the optimizer the parameters that are new"
        )
        raise RuntimeError(
            f"{type(self.learner.model).__name__} was changed after attach:\n"
            + "".join(f"- {one}\n" for one in found)
            + way_out
        )

    def _changes(self) -> list[str]:
        """Every change that a synapse has to do with, as a sentence."""
        learner = self.learner
        for synapse in self.synapses.values():
            refuse_computed(synapse)
        modules = dict(learner.model.named_modules())
        names = {module: name for name, module in modules.items()}
        owners, found, told = learner.owners, [], set()
        for name, owner in owners.items():
            if modules.get(name) is owner:
                continue
            told.add(name)
            if owner in names:
                found.append(f"'{name}' is '{names[owner]}' now")
            elif name in modules:
                found.append(f"in place of '{name}' stands a {type(modules[name]).__name__} that is not attached")
            else:
                found.append(f"'{name}' is gone")
        known = set(owners.values())
        known |= {modules[name] for name in learner.elementwise if name in modules}
        new = [name for name, module in modules.items() if module not in known and _holds_weights(module)]
        found += [
            f"{faults.ITSELF if name == '' else repr(name)} has parameters that no synapse covers"
            if modules[name] in self._members
            else f"'{name}' is a {type(modules[name]).__name__} that is not attached"
            for name in new
            if name not in told
        ]
        found += [
            f"the weights of '{synapse.label}' are {list(synapse.weight.shape)} now, and were {list(shape)}"
            for synapse, shape in self._shapes
            if synapse in names and synapse._parameters.get("weight") is not None and synapse.weight.shape != shape
        ]
        if emptied := sorted(learner.circuit.emptied):
            found.append(
                f"feedback of {', '.join(map(repr, emptied))} was emptied with its layer (to_empty, or a move by way of the "
                "meta device), and has no values: load a state dict that holds it, or let refresh draw it anew"
            )
        return found

    def refresh(self, example_input: Any) -> None:
        """Take in the model as it is now (see `apical.Learner.refresh`)."""
        learner, model = self.learner, self.learner.model
        if learner.copies > 1:
            raise ValueError("copies side by side can't be refreshed; make replicas of the changed network anew")
        meet(model)
        apart = unfuse(model)
        try:
            self._refresh(example_input, apart)
        except Exception:
            for fuse in apart:
                fuse()
            raise

    def _refresh(self, example_input: Any, apart: list[Callable[[], Any]]) -> None:
        learner, model = self.learner, self.learner.model
        names: dict[nn.Module, str] = {owner: name for name, owner in learner.synapses.items()}
        modules = dict(model.named_modules())
        example = self.example if example_input is None else first_rows(example_input, FEW)
        self._check(modules, example)
        layers = [name for name, module in modules.items() if module in names or synapse_type(module) is not None]
        new = [name for name in layers if modules[name] not in names]
        chosen: dict[str, Rule] = rules_of(still_there(self.rule, new), new) if new else {}
        rules = {name: chosen.get(name) or learner.rules[names[modules[name]]] for name in layers}
        places = [*new, *(self.at or ())]
        fractions = connections.connectivities_of(still_there(self.connectivity, places), places)
        shares = {name: fractions.get(name) or learner.connectivity[names[modules[name]]] for name in layers}
        shares |= {name: fractions[name] for name in self.at or ()}
        connections.check(model, rules, shares)
        shown = self._shown(rules, example)
        held, adapted = conversion.Held(learner), learner.adapted
        # Layers that are taken apart stay so.
        learner.undo = [step for step in learner.undo if step not in self.apart]
        self.apart = [*self.apart, *apart]
        learner.detach()
        learner.undo = list(self.apart)
        learner.rules, learner.connectivity = rules, shares
        learner.phases = Phases(learner)
        learner.phases.adapted, self.example = adapted, example
        try:
            self.convert(shown, held)
        except Exception:
            learner.detach()
            raise
        learner.circuit.emptied.clear()
        if learner.circuit.updater is not None:
            learner.circuit.updater.settle()

    def _check(self, modules: Mapping[str, nn.Module], example: Any) -> None:
        """Raise a ValueError with all that can't be attached."""
        known = set(self.learner.owners.values())
        foreign = {one: name for name, one in modules.items() if isinstance(one, Synapse) and one not in known}
        layers, undecided = faults.of_layers(self.learner.model, known | foreign.keys())
        if example is None:
            layers |= {name: sentence for name, sentence in undecided.items() if name not in self.learner.elementwise}
        found = faults.sentences(layers)
        found += [
            f"'{name}' is a synapse of another learner, or a copy of one; detach that learner, or put a plain layer there"
            for name in foreign.values()
        ]
        found += [f"at= names '{name}', which is no module any more" for name in self.at or () if name not in modules]
        if found:
            raise ValueError(
                f"can't take in the changes of {type(self.learner.model).__name__}:\n"
                + "\n".join(f"- {f}" for f in found)
            )

    def _shown(self, rules: dict[str, Rule], example: Any) -> Shown | None:
        """What a dry run of the changed model shows, while its synapses are as plain layers."""
        learner = self.learner
        direct = any(one.direct for one in rules.values())
        if example is None:
            return None
        circuit = learner.circuit
        try:
            with backpropagating(learner), learner.phases.unheard(), circuit.ordinary(), circuit.unwatched():
                shown = dry_run(learner.model, list(rules), example, self.at, learner.output, direct=direct)
        except ValueError as error:
            raise ValueError(f"{error}; give learner.refresh(example_input=...) a batch that does") from error
        found = faults.of_uses(learner.model, rules, shown, self.at)
        faults.refuse(learner.model, rules.values(), faults.sentences(found))
        learner.elementwise = faults.elementwise(learner.model)
        check_wiring(learner.model, rules, shown, self.at)
        return shown


def _holds_weights(module: nn.Module) -> bool:
    own = any("" in found for found in faults.of_layers(module))
    return own or synapse_type(module) is not None or isinstance(module, Synapse)


def _registered(module: nn.Module, name: str, value: Any) -> None:
    """What PyTorch calls when any module is given a child or a parameter."""
    if sharding(module, name, value):
        return
    for surgery in list(_watching):
        if surgery.covers(module):
            surgery.suspect()
