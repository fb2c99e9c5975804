"""Proving what a rule transports: poison the weights for everyone but the forward pass, and see whose updates suffer.

Three tests, each on the same batch with the same random numbers:

1. every reader of a synapse's weights other than its own forward product sees NaN; a rule that carries no weights gives the
   same finite updates;
2. where that fails, magnitudes are scrambled and signs kept; a rule that changes only under the first test carries signs;
3. other layers' parameters are poisoned after the forward pass, as autograd's nodes read them in the backward. For a
   normalization that is its scale; for a layer that attach never saw, its weights. Such a layer may also have put a copy
   of its weights by in its forward pass; so the signal it passes back is compared before and after its weights are scaled.

What a phase of its own learns (`Learner.adapt`) counts as an update too; its forward passes see clean values.

Layers are first poisoned all at once; only if something changes, one by one. Weights that a synapse and another module hold
together are two for the time of the audit, so that each answers for its own reads.

A test proves nothing where its effect could not show. So parameters that are all zero are filled in for the time of the audit;
and where no error comes by, or nothing that a layer sends back reaches another one that learns, the audit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.learner import Criterion, Learner, as_attached
from apical.measures.poison import Poison, clean_passes, untied, zeros_filled
from apical.measures.replay import losses_of, owners_of_weights, replaying
from apical.nested import Arguments, input_of, with_input
from apical.synapses.registry import ELEMENTWISE, NORMALIZATIONS, added
from apical.synapses.synapse import Synapse

Transported = Literal["nothing", "signs", "normalization scale", "weights"]


@dataclass(frozen=True)
class AuditReport:
    """What each module's weights were read for, besides its own forward product.

    transported: module name -> "nothing", "signs", "normalization scale" or "weights", for every synapse and every other
        module with parameters, in the model's order.
    broadcast: what the rule sends to all synapses alike besides errors, in words; empty for most rules.
    """

    rule: str
    transported: dict[str, Transported]
    broadcast: str = ""

    @property
    def summary(self) -> str:
        """The kinds of what is transported, the heaviest first; "nothing" if that is all."""
        kinds = [kind for kind in ("weights", "signs", "normalization scale") if kind in self.transported.values()]
        return ", ".join(kinds) or "nothing"

    def __str__(self) -> str:
        width = max(map(len, self.transported), default=0)
        lines = [f"{name:<{width}}  {kind}" for name, kind in self.transported.items()]
        if self.broadcast:
            lines.append(f"broadcast: {self.broadcast}")
        return "\n".join([f"rule '{self.rule}' transports: {self.summary}", *lines])


def audit(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> AuditReport:
    """Find out what the rule transports, layer by layer. Weights, gradients and random state are left as they were.

    What is tested are the parameters of the model's modules on this batch. Weights kept as buffers or plain tensors, and layers
    that are not registered as submodules, have no line in the report; a layer that the pass does not call, or that the loss does
    not depend on, transports "nothing" in it.

    Args:
        learner: what `attach` returned.
        inputs: a batch, as the model takes it; a few samples will do. targets: as the criterion takes them.
        criterion: criterion(outputs, targets) -> losses [N], one per sample; outputs are the model's, or what `attach` was told
            to pick of them.

    Raises:
        ValueError: if the criterion does not give one loss per sample, if updates aren't finite to begin with, if a transport
            could not show on this batch, or if the learner is detached.
        TypeError: for anything else than a learner, as the model.
    """
    as_attached(learner)
    with (
        zeros_filled(learner.model),
        replaying(learner, phases=True) as again,
        untied(learner.model),
        torch.enable_grad(),
    ):
        return _Audit(
            learner,
            lambda: losses_of(learner, inputs, targets, criterion),
            # Without `adapt` around it, which drops all gradients during a warmup.
            lambda: learner._learn(learner._phases(), inputs, targets, criterion),
            again,
        ).report()


class _Audit:
    def __init__(
        self, learner: Learner, losses: Callable[[], Tensor], adapt: Callable[[], None], again: Callable[[], None]
    ) -> None:
        self.learner, self.losses, self.adapt, self.again = learner, losses, adapt, again
        self.owners = owners_of_weights(learner)
        self.rounding: dict[str, float] = {}
        """Of feedback, below which steps of it may differ by the order of sums alone."""
        self.clean = self._updates([])
        bad = [name for name, update in self.clean.items() if update is not None and not bool(update.isfinite().all())]
        if bad:
            raise ValueError(
                f"updates of {bad} are not finite even before the audit; audit a model and batch that can learn"
            )

    def report(self) -> AuditReport:
        synapses = {name: module for name, module in self.owners.items() if isinstance(module, Synapse)}
        # The slope of an activation function is its own derivative, which every rule reads where the unit is.
        others = {name: m for name, m in self.owners.items() if name not in synapses and type(m) is not nn.PReLU}
        found: dict[str, Transported] = dict.fromkeys(self.owners, "nothing")
        for name in self._sensitive(synapses, lambda module: [Poison(self.learner, module)]):
            scrambled = self._changes([Poison(self.learner, self.owners[name], keep_signs=True)])
            found[name] = "weights" if scrambled else "signs"
        for name in self._sensitive(others, lambda module: [Poison(self.learner, module, after_forward=True)]):
            module = self.owners[name]
            scale = isinstance(module, NORMALIZATIONS) and not (
                added(module) and self._changes([Poison(self.learner, module, after_forward=True, spare_scale=True)])
            )
            found[name] = "normalization scale" if scale else "weights"
        for name, module in others.items():
            asked = found[name] != "weights" and (added(module) or not isinstance(module, ELEMENTWISE))
            if asked and self._keeps_weights(module):
                found[name] = "weights"
        for name in self._unscaled_normalizations():
            if found.get(name) != "weights":
                found[name] = "normalization scale"
        if blind := self._blind([name for name, kind in found.items() if kind in ("nothing", "signs")]):
            raise ValueError(
                f"a transport of {blind} could not show on this batch: the error that comes by there, or its way on to a layer "
                "that learns, is zero throughout; audit with another batch, or other weights, as after some steps of training"
            )
        order = [name or "(model)" for name, _ in self.learner.model.named_modules()]
        parts = (part for rule in self.learner.rules.values() for part in (rule.pathway, rule.plasticity))
        broadcast = "; ".join(dict.fromkeys(part.broadcasts for part in parts if part.broadcasts))
        return AuditReport(self.learner.name, {name: found[name] for name in order if name in found}, broadcast)

    def _sensitive(self, modules: Mapping[str, nn.Module], poison: Callable[[nn.Module], list[Poison]]) -> list[str]:
        if not modules or not self._changes([p for module in modules.values() for p in poison(module)]):
            return []
        return [name for name, module in modules.items() if self._changes(poison(module))]

    def _changes(self, poisons: list[Poison]) -> bool:
        updates = self._updates(poisons)
        return any(_differ(self.clean[name], updates[name], self.rounding.get(name, 0.0)) for name in self.clean)

    def _updates(self, poisons: list[Poison]) -> dict[str, Tensor | None]:
        self.learner.model.zero_grad()
        self.again()
        with ExitStack() as stack:
            for poison in poisons:
                if not poison.after_forward:
                    stack.enter_context(poison.applied())
            losses = self.losses()
            if not len(losses):
                raise ValueError("the batch is empty, so there is nothing to learn from; audit with a batch of samples")
            total = losses.sum()
            for poison in poisons:
                if poison.after_forward:
                    stack.enter_context(poison.applied())
            if total.requires_grad:
                total.backward()
            sites = [site for site in self.learner._sites() if site.plasticity.adapts]
            before = [site.feedback.clone() for site in sites]
            with clean_passes(self.learner.model, poisons):
                self.adapt()
        updates = self._gradients()
        for site, feedback in zip(sites, before, strict=True):
            name = f"feedback of {site.name}"
            updates[name] = site.feedback - feedback
            self.rounding.setdefault(name, torch.finfo(feedback.dtype).eps * float(feedback.abs().max()))
        self.again()
        return updates

    def _gradients(self) -> dict[str, Tensor | None]:
        named = self.learner.model.named_parameters()
        return {name: None if p.grad is None else p.grad.detach() for name, p in named}

    def _blind(self, names: list[str]) -> list[str]:
        """Those of `names` where another signal back would not show: one as large as their error, put in its place."""
        calls: dict[str, list[_Call]] = {name: [] for name in names}
        handles = [
            self.owners[name].register_forward_hook(partial(_see, own), with_kwargs=True) for name, own in calls.items()
        ]
        self.again()
        total = self.losses().sum()
        for handle in handles:
            handle.remove()
        if total.requires_grad:
            total.backward(retain_graph=True)
        # All scales first: signals that are put in place go by other calls.
        places = {name: [(call.inputs, call.scale) for call in own] for name, own in calls.items()}
        return [name for name, own in places.items() if self._hidden(own)]

    def _hidden(self, places: list[tuple[list[Tensor], float]]) -> bool:
        """Whether signals of the given scales have parameters to reach, but change no update there."""
        reached = False
        generator = torch.Generator().manual_seed(0)
        for inputs, scale in places:
            self.learner.model.zero_grad()
            signals = [torch.randn(x.shape, generator=generator).to(x) * scale for x in inputs]
            torch.autograd.backward(inputs, signals, retain_graph=True)
            for name, change in self._gradients().items():
                if change is None:
                    continue
                reached, clean = True, self.clean[name]
                clean = torch.zeros_like(change) if clean is None else clean
                if _differ(clean, clean + change):
                    return False
        return reached

    def _keeps_weights(self, module: nn.Module) -> bool:
        """Whether a layer without children passes back a signal that depends on the weights it had in its forward pass."""
        if isinstance(module, Synapse) or any(True for _ in module.children()):
            return False
        calls: list[Arguments] = []
        handle = module.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
        self._updates([])
        handle.remove()
        signals = []
        for poisons in ([], [Poison(self.learner, module, keep_signs=True, spare_scale=True)]):
            with ExitStack() as stack:
                for poison in poisons:
                    stack.enter_context(poison.applied())
                signals.append([self._signal(module, *call) for call in calls])
            self.again()
        return any(_differ(clean, scaled) for clean, scaled in zip(*signals, strict=True))

    def _signal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What the layer passes back to its first input, for a fixed error at its output."""
        self.again()
        x = input_of(args, kwargs) if args or kwargs else None
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return None
        x = x.detach().requires_grad_(True)
        args, kwargs = with_input(args, kwargs, x)
        output = module.forward(*args, **kwargs)
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        error = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        return torch.autograd.grad(output, x, error, allow_unused=True)[0]

    def _unscaled_normalizations(self) -> list[str]:
        """Normalizations without a learned scale: their derivative still divides by the deviation, wherever a signal crosses."""
        crossed: list[str] = []
        handles = []
        for name, module in self.learner.model.named_modules():
            if isinstance(module, NORMALIZATIONS) and getattr(module, "weight", None) is None:

                def look(module: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name) -> None:
                    if output.requires_grad:
                        output.register_hook(lambda _: crossed.append(name))

                handles.append(module.register_forward_hook(look))
        if handles:
            self._updates([])
        for handle in handles:
            handle.remove()
        return crossed


@dataclass(eq=False)
class _Call:
    """One call of a module: the inputs that take a signal back, and the error at its output once that has come by."""

    inputs: list[Tensor]
    delta: Tensor | None = None

    @property
    def scale(self) -> float:
        """Of the error; 1 where the rule sends none this way, and a phase of its own may."""
        if self.delta is None:
            return 1.0
        return float(self.delta.abs().max()) if self.delta.numel() else 0.0

    def hear(self, delta: Tensor) -> None:
        """Hook of the output."""
        self.delta = delta


def _see(calls: list[_Call], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
    if not inputs:
        return
    calls.append(_Call(inputs))
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(calls[-1].hear)


def _differ(clean: Tensor | None, update: Tensor | None, rounding: float = 0.0) -> bool:
    if clean is None or update is None:
        return clean is not update
    if not bool(update.isfinite().all()):
        return True
    # Far above the rounding of kernels that sum in varying order, far below the effect of another weight matrix.
    return bool((update - clean).abs().max() > 1e-4 * clean.abs().max() + rounding) if clean.numel() else False
