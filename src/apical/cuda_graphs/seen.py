"""What takes part in a training step, found by watching it: optimizers that step, learners they move, modules the step holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from apical.step_hooks import everywhere

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.pathways.subspace import Subspace
    from apical.synapses.circuit import Circuit


class Seen:
    """What was seen in calls of `step`.

    Attributes:
        optimizers: that have stepped. learners: whose parameters these hold. modules: theirs, and those that the step refers to.
        parameters: of all these.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self._step = step
        self.optimizers: list[Optimizer] = []
        self.learners: list[Learner] = []
        self.modules: list[nn.Module] = []
        self.parameters: list[nn.Parameter] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, optimizers that step are seen."""
        found = list(self.optimizers)

        def see(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if not any(one is optimizer for one in found):
                found.append(optimizer)

        handle = register_optimizer_step_pre_hook(see)
        try:
            yield
        finally:
            handle.remove()
        if len(found) > len(self.optimizers) or not self.modules:
            self.optimizers = found
            self.settle()

    def settle(self) -> None:
        """See anew which learners and modules there are."""
        ids = {one for optimizer in self.optimizers for one in everywhere.ids(optimizer)}
        self.learners = [
            one for one in everywhere.learners if one.synapses and any(id(p) in ids for p in one.model.parameters())
        ]
        roots = [*_modules_of(self._step), *(one.model for one in self.learners)]
        self.modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
        held = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        own = [p for module in self.modules for p in module._parameters.values() if p is not None]
        self.parameters = list({id(p): p for p in (*held, *own)}.values())

    @property
    def circuits(self) -> list[Circuit]:
        """What the learners' synapses share."""
        return [one.circuit for one in self.learners]

    @property
    def subspaces(self) -> list[Subspace]:
        """Those of the learners' synapses that turn every few steps."""
        found = [synapse.subspace for one in self.learners for synapse in one.synapses.values()]
        return [one for one in found if one is not None and one.tracking is not None]

    def adapted(self) -> list[int]:
        """How many phases each learner has had."""
        return [one.adapted for one in self.learners]

    def compares(self) -> bool:
        """Whether some learner passes batches again, under the same random state."""
        return any(one.phases.recorder is not None for one in self.learners)

    def warming(self) -> bool:
        """Whether some learner still drops all gradients."""
        return any(one.phases.warming for one in self.learners)

    def elsewhere(self) -> str | None:
        """What an optimizer or learner keeps where a graph can't count it on or draw from it, in words."""
        for learner in self.learners:
            if learner.phases.learns and learner.generator.device.type != "cpu":
                return "the learner's generator lies on the GPU, where seeds can't be drawn ahead; attach with one of the CPU"
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    counts = isinstance(value, int | float) and not isinstance(value, bool)
                    if counts or (isinstance(value, Tensor) and value.device != parameter.device):
                        return (
                            f"{type(optimizer).__name__} counts '{name}' outside of the device; make it with fused=True or "
                            "capturable=True, where it takes that"
                        )
        return None


class Kept:
    """What Python has of the learners and gradients before a step is captured, to be put back where that fails."""

    def __init__(self, seen: Seen) -> None:
        self._grads = [(p, p.grad) for p in seen.parameters]
        self._learners = [(one, one.adapted, one.followed, one.generator.get_state()) for one in seen.learners]
        self._random = torch.get_rng_state()

    def restore(self) -> None:
        """Put it back, and let go of what the step has left half done."""
        torch.set_rng_state(self._random)
        for learner, adapted, followed, state in self._learners:
            learner.phases.adapted, learner.followed = adapted, followed
            learner.generator.set_state(state)
            if learner.circuit.updater is not None:
                learner.circuit.updater.drop()
            if learner.phases.recorder is not None:
                learner.phases.recorder.let_go()
        for parameter, grad in self._grads:
            parameter.grad = grad


def _modules_of(step: Callable[..., Any]) -> Iterator[nn.Module]:
    """Modules that a function refers to: in its closure, among the globals that it names, as its object's attributes."""
    waiting: list[Any] = [step]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, nn.Module):
            yield one
        elif isinstance(one, MethodType):
            waiting += [one.__func__, one.__self__, *getattr(one.__self__, "__dict__", {}).values()]
        elif isinstance(one, functools.partial):
            waiting += [one.func, *one.args, *one.keywords.values()]
        elif isinstance(one, FunctionType) and one.__module__.partition(".")[0] != "torch":
            with suppress(ValueError):  # Of a variable that has nothing yet.
                named = inspect.getclosurevars(one)
                waiting += [*named.nonlocals.values(), *named.globals.values()]
