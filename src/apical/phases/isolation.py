"""Passes that leave no trace: whatever a pass may change in a model is put back.

Dry runs, noisy passes, measurements and audits call a user's model beside his own loop; nothing of that may be seen afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from apical import capturing
from apical.phases.module_state import Held, State, held_buffers

if TYPE_CHECKING:
    from apical.learner import Learner


def cuda_devices(model: nn.Module) -> list[int]:
    """Indices of the GPUs on which parameters of the model lie."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


class RandomState:
    """PyTorch's global random state, on the CPU and on some GPUs."""

    def __init__(self, devices: Iterable[int]) -> None:
        self.cpu = torch.get_rng_state()
        # A GPU's can't be asked for while a graph is captured, which is of steps that draw nothing there and pass again.
        self.cuda = [] if capturing.going_on() else [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore(self) -> None:
        """Let random numbers go on as from the moment when this was made."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda:
            torch.cuda.set_rng_state(state, device)


class Snapshot:
    """What a pass may change besides weights, as it is now: random state, and all that modules hold."""

    def __init__(self, model: nn.Module, also: Any = ()) -> None:
        self._random = RandomState(cuda_devices(model))
        modules = list(model.modules())
        self._state = State(modules, [*modules, *_shared(), also])
        self.leaves = self._state.leaves

    def restore(self) -> None:
        """Put everything back, as often as this is called."""
        self._random.restore()
        self._state.restore()


def _shared() -> list[ModuleType]:
    """Modules of Python that keep a random state for everybody, where they are in use."""
    return [sys.modules[name] for name in ("random", "numpy.random") if name in sys.modules]


class Weights:
    """The values of a model's parameters, as they are now; hooks may clip or quantise them in a pass."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [Held(parameter) for parameter in model.parameters() if not is_lazy(parameter)]

    def restore(self) -> None:
        """Put them back, as often as this is called."""
        for parameter in self._held:
            parameter.restore()


@contextmanager
def weights_preserved(model: nn.Module) -> Iterator[Weights]:
    """While open, passes may change the values of parameters."""
    weights = Weights(model)
    try:
        yield weights
    finally:
        weights.restore()


@contextmanager
def preserved(model: nn.Module, *, gradients: bool = False, also: Any = ()) -> Iterator[Snapshot]:
    """While open, passes through the model leave no trace but in weights; the snapshot given out can put all back in between.

    They are not compiled, whatever ``model.compile()`` was called on, because compiled code tells nothing of what goes through.

    Args:
        model: any module. also: what else passes may change, as their inputs: tensors, or containers of them.
        gradients: `.grad` of all parameters, and of other leaves among what is held, which is None while this is open.
    """
    with _eager(model.modules()):
        snapshot = Snapshot(model, also)
        grads = [(p, p.grad) for p in (*model.parameters(), *snapshot.leaves())] if gradients else []
        for leaf, _ in grads:
            leaf.grad = None
        try:
            yield snapshot
        finally:
            for leaf, grad in grads:
                leaf.grad = grad
            snapshot.restore()


@contextmanager
def _eager(modules: Iterable[nn.Module]) -> Iterator[None]:
    compiled = [(module, module._compiled_call_impl) for module in modules if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


class Watch:
    """What the passes of phases change in a model, found by looking, so that a phase saves and puts back this alone.

    Most modules hold nothing that a pass changes, and phases come with every step. So everything is saved and compared in the
    first, second, fourth, eighth ... phase, and in every one that finds other modules, or modules in other modes or with other
    attributes, than the one before. In between, users' own modules that have changed nothing yet are compared, but for the values
    of tensors and arrays; and of PyTorch's layers, the values of buffers are put back.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._phases = 0
        self._seen: tuple[list[nn.Module], list[tuple[bool, int]]] = [], []
        self._changing: list[Any] = []
        self._own: list[nn.Module] = []
        self._layers: list[nn.Module] = []
        self._looks = self._begins = True

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Watch.__init__(self, **state)

    def begin(self) -> None:
        """Begin a phase. Nothing is looked at before its first pass; many make none."""
        self._begins = True

    def _begin(self) -> None:
        self._begins = False
        self._phases += 1
        modules = list(self.model.modules())
        seen = modules, [(module.training, len(vars(module))) for module in modules]
        # To look is to read values, which nobody may where a graph is to be made.
        doubtful = not self._phases & (self._phases - 1) and not capturing.tried()
        self._looks = seen != self._seen or doubtful
        self._seen = seen
        if self._looks:
            self._sort()

    @contextmanager
    def unchanged(self, *, also: Any = None, newly: Callable[[], None] = lambda: None) -> Iterator[None]:
        """While open, passes change nothing in the model besides feedback.

        Args:
            also: what else they may change; with it, everything is looked at. newly: called when something is changed that was
                not in phases before.
        """
        if self._begins:
            self._begin()
        modules, looks = self._seen[0], self._looks or also is not None
        with _eager(modules):
            if looks:
                state = State(modules, [*modules, *_shared(), also])
            elif self._changing or self._own or self._layers:
                state = State(modules if self._changing or self._own else (), self._changing, self._own)
            else:
                yield
                return
            values = [held for layer in self._layers for held in held_buffers(layer)]
            try:
                yield
            finally:
                for one in values:
                    one.restore()
                changed = state.changed(None if looks else self._own)
                if changed or self._changing:
                    state.restore()
                known = set(map(id, (*self._changing, also)))
                if found := [owner for owner in changed if id(owner) not in known]:
                    self._changing += found
                    self._sort()
                    self._looks = True
                    if self._phases > 1:
                        newly()

    def _sort(self) -> None:
        known = set(map(id, self._changing))
        others = [module for module in self._seen[0] if id(module) not in known]
        self._own = [module for module in others if _users(type(module))]
        self._layers = [module for module in others if not _users(type(module)) and held_buffers(module)]


@cache
def _users(kind: type[nn.Module]) -> bool:
    """Whether a class of modules is neither PyTorch's nor apical's."""
    return kind.__module__.partition(".")[0] not in ("torch", "apical")


@contextmanager
def unchanged(learner: Learner, *, also: Any = None) -> Iterator[None]:
    """While open, passes of a phase change nothing of the learner's model besides feedback, and none is recorded."""
    phases = learner.phases
    with phases.unheard(), phases.watch.unchanged(also=also, newly=phases.doubt):
        yield


@contextmanager
def learning(model: nn.Module, wanted: bool | None) -> Iterator[list[nn.Parameter]]:
    """While open, all parameters, or none, require a gradient; with None, those that do. Gives those that do."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    for parameter, own in zip(parameters, before, strict=True):
        parameter.requires_grad_(own if wanted is None else wanted)
    try:
        yield [p for p in parameters if p.requires_grad]
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)
