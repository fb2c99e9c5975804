"""Proving what a rule transports: poison the weights for everyone but the forward pass, and see whose updates suffer.

Three tests, each on the same batch with the same random numbers:

1. every reader of a synapse's weights other than its own forward product sees NaN; a rule that carries no weights gives
   the same finite updates;
2. where that fails, magnitudes are scrambled and signs kept; a rule that changes only under the first test carries
   signs;
3. other layers' parameters are poisoned after the forward pass, as autograd's nodes read them in the backward. For a
   normalization that is its scale; for a layer that attach never saw, its weights. Such a layer may also have put a
   copy of its weights by in its forward pass; so the signal it passes back is compared before and after its weights are
   scaled.

What a phase of its own learns (`Learner.adapt`) counts as an update too; its forward passes see clean values.

Layers are first poisoned all at once; only if something changes, one by one. Weights that a synapse and another module
hold together are two for the time of the audit, so that each answers for its own reads.

What hooks make of weights around a forward pass (quantised, clipped) belongs to it: the products of the clean pass are
recorded, and made of the same again.

A model with rules made by hand is tested as a layer that attach never saw is. Its feedback weights are parameters that
no forward pass reads, and are spared.

A test proves nothing where its effect could not show. So parameters that are all zero are filled in for the time of the
audit; and where no error comes by, or nothing that a layer sends back reaches another one that learns, the audit is
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.learner import Criterion, Learner, as_attached
from apical.measures.blindness import blind
from apical.measures.poison import Poison, Values, untied, zeros_filled
from apical.measures.replay import alone, own_parameters, owners_of_weights, replaying, require_whole
from apical.measures.trial import Trial, differ
from apical.nested import Arguments, input_of, with_input
from apical.phases.isolation import weights_preserved
from apical.plasticity import Phased
from apical.synapses.registry import ELEMENTWISE, NORMALIZATIONS, added
from apical.synapses.synapse import Synapse

Transported = Literal["nothing", "signs", "normalization scale", "weights"]


@dataclass(frozen=True)
class AuditReport:
    """Verdict of an audit: what each module's weights were read for besides its own forward product. Printed as lines.

    Attributes:
        rule: name of the rule, or the names of all.
        transported: module name -> "nothing", "signs", "normalization scale" or "weights", for every synapse and every
            other module with parameters, in the model's order.
        broadcast: what the rule sends to all synapses alike besides errors, in words; empty for most rules.

    >>> print(AuditReport("usf", {"0": "nothing", "2": "signs"}))
    rule 'usf' transports: signs
    0  nothing
    2  signs
    """

    rule: str
    transported: dict[str, Transported]
    broadcast: str = ""

    @property
    def summary(self) -> str:
        """Kinds of what is transported anywhere, the heaviest first; "nothing" if that is all.

        >>> AuditReport("usf", {"0": "nothing", "1": "normalization scale", "3": "signs"}).summary
        'signs, normalization scale'
        """
        kinds = [kind for kind in ("weights", "signs", "normalization scale") if kind in self.transported.values()]
        return ", ".join(kinds) or "nothing"

    def __str__(self) -> str:
        width = max(map(len, self.transported), default=0)
        lines = [f"{name:<{width}}  {kind}" for name, kind in self.transported.items()]
        if self.broadcast:
            lines.append(f"broadcast: {self.broadcast}")
        return "\n".join([f"rule '{self.rule}' transports: {self.summary}", *lines])


def audit(learner: Learner | nn.Module, inputs: Any, targets: Any, criterion: Criterion) -> AuditReport:
    """Report of what the rule transports, layer by layer, found by poisoning weights for all but the forward pass.

    A rule's name proves nothing: feedback may alias the weights, and a layer that `attach` never saw may read its own.
    Weights, gradients and random state are left as they were. What is tested are the parameters of the model's modules
    on this batch. Weights kept as buffers or plain tensors, and layers that are not registered as submodules, have no
    line in the report; a layer that the pass does not call, or that the loss does not depend on, transports "nothing"
    in it.

    Args:
        learner: what `attach` returned; or a model to which nothing is attached, with rules made by hand in its layers'
            own backward.
        inputs: a batch, as the model takes it; a few samples will do. targets: as the criterion takes them.
        criterion: criterion(outputs, targets) -> losses [N], one per sample; outputs are the model's, or what `attach`
            was told to pick of them.

    Raises:
        ValueError: if the criterion does not give one loss per sample, if updates aren't finite to begin with, if a
            transport could not show on this batch, if no parameter of a plain model gets a gradient, or if the learner
            is detached.
        TypeError: for anything else than a learner or a plain model, as a model that is attached.

    >>> import apical, torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    >>> model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> print(apical.audit(apical.attach(model, "bp"), x, y, nn.CrossEntropyLoss(reduction="none")))
    rule 'bp' transports: weights
    0  nothing
    2  weights
    """
    learner = _by_hand(learner) if isinstance(learner, nn.Module) else as_attached(learner)
    require_whole(learner, "apical.audit")
    with (
        alone(learner),
        learner.circuit.unwatched(),
        zeros_filled(learner.model),
        weights_preserved(learner.model) as weights,
        untied(learner.model),
        replaying(learner, (inputs, targets), phases=True) as again,
        torch.enable_grad(),
    ):
        return _Audit(Trial(learner, again, weights, inputs, targets, criterion)).report()


def _by_hand(model: nn.Module) -> Learner:
    """A learner without a synapse, for a model that learns by itself."""
    if any(isinstance(module, Synapse) for module in model.modules()):
        return as_attached(model)
    return Learner(model, {}, torch.Generator().manual_seed(0), None, {})


class _Audit:
    """The verdicts, one module after the other."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.learner = trial, trial.learner
        self.owners = owners_of_weights(trial.learner)
        self.scales = {name or "(model)" for name in trial.learner.elementwise}
        self.by_hand = not trial.learner.synapses
        if self.by_hand and all(update is None for update in trial.clean.values()):
            raise ValueError(
                f"no parameter of this {type(trial.learner.model).__name__} gets a gradient by the backward pass of the "
                "criterion's losses, so an audit sees nothing of how it learns; audit a model that learns by loss.backward()"
            )

    def report(self) -> AuditReport:
        synapses = {name: module for name, module in self.owners.items() if isinstance(module, Synapse)}
        # The slope of an activation function is its own derivative, which every rule reads where the unit is.
        others = {name: m for name, m in self.owners.items() if name not in synapses and type(m) is not nn.PReLU}
        found: dict[str, Transported] = dict.fromkeys(self.owners, "nothing")
        for name in self._sensitive(synapses, lambda module: [Poison(self.learner, module)]):
            scrambled = self.trial.changes([Poison(self.learner, self.owners[name], values="scrambled")])
            found[name] = "weights" if scrambled else "signs"
        for name in self._sensitive(others, lambda module: [Poison(self.learner, module, after_forward=True)]):
            found[name] = "normalization scale" if name in self.scales else self._read(self.owners[name])
        for name, module in others.items():
            asked = found[name] != "weights" and (added(module) or not isinstance(module, ELEMENTWISE))
            if asked and (kind := self._kept(module)):
                found[name] = "normalization scale" if name in self.scales else kind
        for name in self._unscaled_normalizations():
            if found.get(name) != "weights":
                found[name] = "normalization scale"
        light = {name: self.owners[name] for name, kind in found.items() if kind in ("nothing", "signs")}
        if names := blind(self.trial, light):
            raise ValueError(
                f"a transport of {names} could not show on this batch: the error that comes by there, or its way on to "
                "a layer that learns, is zero throughout; audit with another batch, or other weights, as after some "
                "steps of training"
            )
        order = [name or "(model)" for name, _ in self.learner.model.named_modules()]
        parts = (part for rule in self.learner.rules.values() for part in (rule.pathway, rule.plasticity))
        broadcast = "; ".join(dict.fromkeys(p.broadcast for p in parts if isinstance(p, Phased) and p.broadcast))
        rule = "(the model's own)" if self.by_hand else self.learner.name
        return AuditReport(rule, {name: found[name] for name in order if name in found}, broadcast)

    def _sensitive(self, modules: Mapping[str, nn.Module], poison: Callable[[nn.Module], list[Poison]]) -> list[str]:
        """Names of the modules whose poison changes an update; all at once first, because most rules pass that."""
        # Of weights that a pass computes, the updates of what they are made of may tell of themselves: not among others'.
        alone = {name: module for name, module in modules.items() if getattr(module, "computed", False)}
        rest = {name: module for name, module in modules.items() if name not in alone}
        if not rest or not self.trial.changes([p for module in rest.values() for p in poison(module)]):
            rest = {}
        return [
            name for name, module in modules.items() if name in (*alone, *rest) and self.trial.changes(poison(module))
        ]

    def _read(self, module: nn.Module) -> Transported:
        """What the backward pass reads of a module's parameters, if it reads any."""

        def changes(**options: Any) -> bool:
            return self.trial.changes([Poison(self.learner, module, True, spare=spare, **options)])

        spare = self._feedback(module)
        if spare and not changes():
            return "nothing"
        if isinstance(module, NORMALIZATIONS) and not (added(module) and changes(spare_scale=True)):
            return "normalization scale"
        return "weights" if isinstance(module, ELEMENTWISE) or changes(values="scrambled") else "signs"

    def _feedback(self, module: nn.Module) -> frozenset[nn.Parameter]:
        """Parameters that no forward pass reads: feedback weights of a rule made by hand."""
        if isinstance(module, ELEMENTWISE) and not added(module):
            return frozenset()
        self.trial.afresh()
        clean, found = self.trial.losses().detach(), []
        for parameter in own_parameters(self.learner, module).values():
            self.trial.afresh()
            parameter.data.fill_(float("nan") if parameter.is_floating_point() else 0)
            if not differ(clean, self.trial.losses().detach()):
                found.append(parameter)
        self.trial.afresh()
        return frozenset(found)

    def _kept(self, module: nn.Module) -> Literal["weights", "signs"] | None:
        """What the signal that a layer without children sends back depends on, of the weights of its forward pass."""
        if isinstance(module, Synapse) or any(True for _ in module.children()):
            return None
        calls: list[Arguments] = []
        handle = module.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
        self.trial.updates([])
        handle.remove()
        spare = self._feedback(module)

        def depends(values: Values, *, zero: bool = False) -> bool | None:
            """Whether a signal changes with the weights; None if there is none to change."""
            poison = Poison(self.learner, module, True, values, spare_scale=True, spare=spare)
            clean = [self._signal(module, *call, zero=zero) for call in calls]
            with poison.applied():
                poisoned = [self._signal(module, *call, zero=zero) for call in calls]
            self.trial.again()
            changed = any(map(differ, clean, poisoned))
            return changed if changed or any(one is not None and bool(one.any()) for one in clean) else None

        # A layer by hand may hold its activation function, whose slope depends on what comes in; at zero it does not.
        kinds: dict[Values, Literal["weights", "signs"]] = {"scrambled": "weights", "flipped": "signs"}
        for values, kind in kinds.items():
            if depends(values) and not (self.by_hand and depends(values, zero=True) is False):
                return kind
        return None

    def _signal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, zero: bool) -> Tensor | None:
        """Signal that the layer passes back to its first input, or zeros in its place, for a fixed error at its output."""
        self.trial.again()
        x = input_of(args, kwargs) if args or kwargs else None
        # Where the input asks for no gradient, no signal leaves the layer.
        if not isinstance(x, Tensor) or not x.requires_grad:
            return None
        x = (torch.zeros_like(x) if zero else x.detach()).requires_grad_(True)
        args, kwargs = with_input(args, kwargs, x)
        # Hooks of a layer by hand may be its rule.
        output = (module if self.by_hand else module.forward)(*args, **kwargs)
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        error = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        return torch.autograd.grad(output, x, error, allow_unused=True)[0]

    def _unscaled_normalizations(self) -> list[str]:
        """Names of the normalizations without a learned scale that a signal crosses.

        Their derivative still divides by the deviation.
        """
        crossed: list[str] = []
        handles = []
        for name, module in self.learner.model.named_modules():
            if isinstance(module, NORMALIZATIONS) and getattr(module, "weight", None) is None:

                def look(module: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name) -> None:
                    if output.requires_grad:
                        output.register_hook(lambda _: crossed.append(name))

                handles.append(module.register_forward_hook(look))
        if handles:
            self.trial.updates([])
        for handle in handles:
            handle.remove()
        return crossed
