"""Proving what a rule transports: poison the weights for everyone but the forward pass, and see whose updates suffer.

Three tests, each on the same batch with the same random numbers:

1. every reader of a synapse's weights other than its own forward product sees NaN; a rule that carries no weights gives the
   same finite updates;
2. where that fails, magnitudes are scrambled and signs kept; a rule that changes only under the first test carries signs;
3. other layers' parameters are poisoned after the forward pass, as autograd's nodes read them in the backward. For a
   normalization that is its scale; for a layer that attach never saw, its weights. Such a layer may also have put a copy
   of its weights by in its forward pass; so the signal it passes back is compared before and after its weights are scaled.

What a phase of its own learns (`Learner.adapt`) counts as an update too; its forward passes see clean values.

Layers are first poisoned all at once; only if something changes, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.learner import Criterion, Learner
from apical.registry import ELEMENTWISE, NORMALIZATIONS
from apical.replay import losses_of, owners_of_weights, replaying
from apical.synapse import Synapse

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

    Args:
        learner: what `attach` returned.
        inputs: a batch, as the model takes it; a few samples will do. targets: as the criterion takes them.
        criterion: criterion(outputs, targets) -> losses [N], one per sample.

    Raises:
        ValueError: if the criterion does not give one loss per sample, or losses and updates aren't finite to begin with.
    """
    with replaying(learner, phases=True) as again, torch.enable_grad():
        return _Audit(
            learner,
            lambda: losses_of(learner, inputs, targets, criterion),
            lambda: learner.adapt(inputs, targets, criterion),
            again,
        ).report()


class _Audit:
    def __init__(
        self, learner: Learner, losses: Callable[[], Tensor], adapt: Callable[[], None], again: Callable[[], None]
    ) -> None:
        self.learner, self.losses, self.adapt, self.again = learner, losses, adapt, again
        self.owners = owners_of_weights(learner.model)
        self.clean = self._updates([])
        bad = [name for name, update in self.clean.items() if update is not None and not bool(update.isfinite().all())]
        if bad:
            raise ValueError(
                f"updates of {bad} are not finite even before the audit; audit a model and batch that can learn"
            )

    def report(self) -> AuditReport:
        synapses = {name: module for name, module in self.owners.items() if self._exclusive(module)}
        others = {name: module for name, module in self.owners.items() if name not in synapses}
        found: dict[str, Transported] = dict.fromkeys(self.owners, "nothing")
        for name in self._sensitive(synapses, lambda module: [_Poison(self.learner, module)]):
            scrambled = self._changes([_Poison(self.learner, self.owners[name], keep_signs=True)])
            found[name] = "weights" if scrambled else "signs"
        for name in self._sensitive(others, lambda module: [_Poison(self.learner, module, after_forward=True)]):
            found[name] = "normalization scale" if isinstance(self.owners[name], NORMALIZATIONS) else "weights"
        for name, module in others.items():
            if found[name] == "nothing" and not isinstance(module, ELEMENTWISE) and self._keeps_weights(module):
                found[name] = "weights"
        for name in self._unscaled_normalizations():
            found[name] = "normalization scale"
        order = [name or "(model)" for name, _ in self.learner.model.named_modules()]
        parts = (part for rule in self.learner.rules.values() for part in (rule.pathway, rule.plasticity))
        broadcast = "; ".join(dict.fromkeys(part.broadcasts for part in parts if part.broadcasts))
        return AuditReport(self.learner.name, {name: found[name] for name in order if name in found}, broadcast)

    def _exclusive(self, module: nn.Module) -> bool:
        """Whether only synapses hold this module's weights, so that clean values can be kept for `transmit` alone."""
        if not isinstance(module, Synapse):
            return False
        holders = [m for m in self.owners.values() if any(p is module.weight for p in m._parameters.values())]
        return all(isinstance(holder, Synapse) for holder in holders)

    def _sensitive(self, modules: dict[str, nn.Module], poison: Callable[[nn.Module], list[_Poison]]) -> list[str]:
        if not modules or not self._changes([p for module in modules.values() for p in poison(module)]):
            return []
        return [name for name, module in modules.items() if self._changes(poison(module))]

    def _changes(self, poisons: list[_Poison]) -> bool:
        updates = self._updates(poisons)
        return any(_differ(self.clean[name], updates[name]) for name in self.clean)

    def _updates(self, poisons: list[_Poison]) -> dict[str, Tensor | None]:
        parameters = dict(self.learner.model.named_parameters())
        for parameter in parameters.values():
            parameter.grad = None
        self.again()
        with ExitStack() as stack:
            for poison in poisons:
                if not poison.after_forward:
                    stack.enter_context(poison.applied())
            total = self.losses().sum()
            for poison in poisons:
                if poison.after_forward:
                    stack.enter_context(poison.applied())
            if total.requires_grad:
                total.backward()
            self.learner._forward = lambda: _clean(poisons)
            try:
                self.adapt()
            finally:
                self.learner._forward = nullcontext
        updates = {name: None if p.grad is None else p.grad.detach() for name, p in parameters.items()}
        for site in self.learner._sites():
            if site.plasticity.adapts:
                updates[f"feedback of {site.name}"] = site.feedback.clone()
        self.again()
        return updates

    def _keeps_weights(self, module: nn.Module) -> bool:
        """Whether a layer without children passes back a signal that depends on the weights it had in its forward pass."""
        if isinstance(module, Synapse) or any(True for _ in module.children()):
            return False
        calls: list[tuple[Any, ...]] = []
        handle = module.register_forward_pre_hook(lambda _, args: calls.append(args))
        self._updates([])
        handle.remove()
        signals = []
        for poisons in ([], [_Poison(self.learner, module, keep_signs=True)]):
            with ExitStack() as stack:
                for poison in poisons:
                    stack.enter_context(poison.applied())
                signals.append([self._signal(module, args) for args in calls])
            self.again()
        return any(_differ(clean, scaled) for clean, scaled in zip(*signals, strict=True))

    def _signal(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """What the layer passes back to its first input, for a fixed error at its output."""
        self.again()
        x = args[0].detach() if args and isinstance(args[0], Tensor) else None
        if x is None or not x.is_floating_point():
            return None
        x.requires_grad_(True)
        output = module.forward(x, *args[1:])
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


@dataclass
class _Poison:
    """Replaces what readers of one module's weights see."""

    learner: Learner
    module: nn.Module
    after_forward: bool = False
    keep_signs: bool = False
    clean: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """While applied: what is poisoned, with its own values."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        tensors = self._tensors()
        kept = [tensor.detach().clone() for tensor in tensors]
        weight = self.module._parameters.get("weight")
        sharing = [s for s in self.learner.synapses.values() if s.weight is weight and not self.after_forward]
        if self.after_forward:
            self.clean = list(zip(tensors, kept, strict=True))
        try:
            for synapse in sharing:
                synapse.clean_weight = kept[0]
            for tensor in tensors:
                # Through .data, in the same storage: neither aliases nor autograd's saved tensors may tell.
                tensor.data.copy_(self._poisoned(tensor))
            yield
        finally:
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.data.copy_(value)
            for synapse in sharing:
                vars(synapse).pop("clean_weight", None)
            self.clean = []

    def _tensors(self) -> list[Tensor]:
        if isinstance(self.module, Synapse):
            return [self.module.weight]
        if isinstance(self.module, NORMALIZATIONS):
            scale = [self.module._parameters.get("weight"), self.module._buffers.get("running_var")]
            return [tensor for tensor in scale if tensor is not None]
        return [p for p in self.module._parameters.values() if p is not None and p.is_floating_point()]

    def _poisoned(self, tensor: Tensor) -> Tensor:
        if not self.keep_signs:
            return torch.full_like(tensor, float("nan"))
        generator = torch.Generator().manual_seed(0)
        factor = torch.empty(tensor.shape).log_normal_(0.0, 1.0, generator=generator)
        return tensor.detach() * factor.to(tensor.device, tensor.dtype)


@contextmanager
def _clean(poisons: list[_Poison]) -> Iterator[None]:
    """While open, what forward passes may read has its own values again."""
    pairs = [pair for poison in poisons for pair in poison.clean]
    poisoned = [tensor.detach().clone() for tensor, _ in pairs]
    for tensor, value in pairs:
        tensor.data.copy_(value)
    try:
        yield
    finally:
        for (tensor, _), value in zip(pairs, poisoned, strict=True):
            tensor.data.copy_(value)


def _differ(clean: Tensor | None, update: Tensor | None) -> bool:
    if clean is None or update is None:
        return clean is not update
    if not bool(update.isfinite().all()):
        return True
    # Far above the rounding of kernels that sum in varying order, far below the effect of another weight matrix.
    return bool((update - clean).abs().max() > 1e-4 * clean.abs().max()) if clean.numel() else False
