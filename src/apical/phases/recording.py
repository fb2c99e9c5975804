"""The newest pass that was backpropagated: its output, the errors that went back in it, and the conditions it was made under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from apical import capturing
from apical.nested import input_of, pick, tensors
from apical.pathways.checkpointing import graph_comes_later, opening, recomputing, refuse_second
from apical.phases.conditions import Conditions, statistics_of
from apical.phases.isolation import cuda_devices
from apical.phases.listening import Astray, Listeners
from apical.synapses.transformed import compiling, transforming

if TYPE_CHECKING:
    from apical.learner import Learner
    from apical.synapses.synapse import Geometry, Synapse


@dataclass
class Call:
    """One call of a synapse in a pass: the error at its output and the signal at its input, once they have come by.

    Both are as the backward pass had them: times whatever the loss was multiplied with.
    """

    delta: Tensor | None = None
    signal: Tensor | None = None
    geometry: Geometry = ()

    def hear(self, delta: Tensor, signal: Tensor | None, geometry: Geometry) -> None:
        """Keep what the backward pass had here."""
        self.delta, self.signal, self.geometry = delta, signal, geometry


@dataclass
class Pass:
    """One forward pass of the whole model with a graph, and its backward.

    Synapses tell it of their calls; those that another thread makes meanwhile are none of this pass.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    conditions: Conditions
    listeners: Listeners
    calls: dict[tuple[str, int], Call] = field(default_factory=dict)
    """Place and number of the call -> what went through there, of the synapses whose plasticity listens."""
    cuts: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """For the scalar pathway: place and number of the call -> activity, with the graph of what lies before it."""
    counts: dict[str, int] = field(default_factory=dict)
    bypassed: bool = False
    """True if a skip connection joins a cut activity to the output.

    Then the user's backward pass frees the graph below the cut, and the phase has to rebuild it.
    """
    output: Tensor | None = None
    error: Tensor | None = None
    """Gradient at the output, times whatever the loss was multiplied with."""
    number: int = 0
    """How many passes were recorded before."""
    weights: int = 0
    """Sum of the parameters' version counters when the pass ended; another sum now means that the weights have moved."""
    thread: int = field(default_factory=get_ident)

    @property
    def mine(self) -> bool:
        """Whether it is this thread's."""
        return torch.compiler.is_dynamo_compiling() or self.thread == get_ident()

    def count(self, place: str) -> int:
        """The number of a new call of the synapse at `place`."""
        number = self.counts[place] = self.counts.get(place, -1) + 1
        return number

    def call(self, synapse: Synapse) -> Call | None:
        """The record of a new call of `synapse`; None where its plasticity does not learn from the pass."""
        if synapse.label not in self.listeners.plasticities or not self.mine:
            return None
        found = self.calls[synapse.label, self.count(synapse.label)] = Call()
        return found

    def cut(self, synapse: Synapse, x: Tensor) -> None:
        """Keep the activity x at whose place a scalar pathway cuts the graph."""
        if not self.mine:
            return
        number = self.count(synapse.label)
        if x.requires_grad:
            self.cuts[synapse.label, number] = x

    def call_without_graph(self, synapse: Synapse, x: Tensor) -> None:
        """Count a call that builds no graph.

        Raises:
            RuntimeError: if its graph comes later, as in reentrant checkpoints, and what the phase listens for would be lost.
        """
        if not self.mine:
            return
        if synapse.label in self.listeners.all and x.requires_grad and graph_comes_later():
            raise RuntimeError(
                f"'{synapse.label}' is computed without a graph, by reentrant activation checkpointing, inside a forward pass "
                "that learns in a phase of its own; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        self.count(synapse.label)


def _bypassed(output: Tensor, cuts: list[Tensor]) -> bool:
    after = set(_nodes([output]))
    return any(node in after for node in _nodes(cuts))


def _nodes(tensors: list[Tensor]) -> Iterator[Node]:
    """All that autograd's graph holds of how `tensors` were made."""
    waiting, seen = [t.grad_fn for t in tensors], set()
    while waiting:
        node = waiting.pop()
        # Parameters' own nodes keep nothing that could be freed.
        if node is None or node in seen or hasattr(node, "variable"):
            continue
        seen.add(node)
        yield node
        waiting += [one for one, _ in node.next_functions]


class Recorder:
    """Keeps the newest pass that was backpropagated. Hooks of the model and of its batch normalizations call it.

    A pass without a backward, made for an accuracy or a log, takes the place of none. Synapses see a pass only while it is open:
    kept within their reach, its graph, which holds them, would never be freed.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.listeners = Listeners.of(learner)
        self.newest: Pass | None = None
        self.paused = False
        self._own: list[Pass] | None = None
        self._open: Pass | None = None
        self._passes = 0
        self.astray = Astray(self.listeners)
        learner.circuit.record = self.astray
        self.checked = False
        """Whether this model has been seen to give the same output under the same conditions."""
        self.alike = True
        """Whether the loop's loss was a multiple of the criterion's when that was looked at."""
        self.coupled: dict[object, bool] = {}
        """Kind of a criterion -> whether losses of samples depend on other samples (see `apical.phases.noisy_pass.coupled`)."""
        model = learner.model
        self.handles = [
            # Registered first, so that the arguments recorded here pass through the user's own pre-hooks when the pass is
            # repeated.
            model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True),
            model.register_forward_hook(self.end, always_call=True),
        ]
        self.handles += [
            module.register_forward_hook(self.see_normalization, with_kwargs=True)
            for module in model.modules()
            if isinstance(module, _BatchNorm)
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "newest": None, "coupled": {}, "_own": None, "_open": None}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model."""
        if self.paused or not torch.is_grad_enabled() or compiling():
            return
        if recomputing() or transforming():
            return
        circuit = self.learner.circuit
        if circuit.busy and not circuit.mine:
            return  # Its first synapse refuses the call.
        with opening:
            if self._open is not None:
                refuse_second(module, self._open.thread)
            self._passes += 1
            self._open = Pass(args, kwargs, self.conditions(), self.listeners, number=self._passes)
        circuit.record = self._open

    def conditions(self) -> Conditions:
        """The conditions of a pass that is made now."""
        return Conditions.now(cuda_devices(self.learner.model), self.learner.phases.device_type)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of the model; runs after those of the pathways, whose output is what the user gets."""
        found, circuit = self._open, self.learner.circuit
        if found is None:
            circuit.record = circuit.record or self.astray  # Copies of a model have lost it.
            return
        if not torch.is_grad_enabled() or not found.mine:
            return
        self._open, circuit.record = None, self.astray
        if output is None:
            return
        picked = pick(output, self.learner.output)
        if found.cuts:
            found.bypassed = _bypassed(picked, list(found.cuts.values()))
        if picked.requires_grad:
            picked.register_hook(partial(self._hear, found))
        # A copy: the loop may change it in place.
        found.output = picked.detach().clone()
        found.weights = self.weights()
        if self._own is not None and self.learner.circuit.mine:
            self._own.append(found)

    def _hear(self, found: Pass, error: Tensor) -> None:
        """Hook of the output."""
        found.error = error
        if self.newest is None or self.newest.number <= found.number:
            self.newest = found

    def weights(self) -> int:
        """Sum of the parameters' version counters."""
        return sum(parameter._version for parameter in self.learner.model.parameters())

    @property
    def heard(self) -> Pass | None:
        """The newest pass that was backpropagated, if the weights are still those that it was made with."""
        found = self.newest
        return found if found is not None and found.weights == self.weights() else None

    def let_go(self) -> None:
        """Forget what was recorded: a phase has learned from it."""
        self.newest = None
        self.astray.heard = {}
        # Copies of a model have lost it.
        self.learner.circuit.record = self.astray

    @contextmanager
    def recording(self) -> Iterator[list[Pass]]:
        """While open, passes are recorded into the list given out, whether they are backpropagated or not."""
        paused, self.paused, self._own = self.paused, False, []
        try:
            yield self._own
        finally:
            self.paused, self._own = paused, None

    def see_normalization(
        self, module: _BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Hook of every batch normalization."""
        mixes = module.training or module.running_mean is None
        current = self._open
        if current is not None and mixes and not compiling() and current.mine:
            found = statistics_of(input_of(args, kwargs), output)
            current.conditions.normalized.setdefault(module, []).append(found)


def same(found: Pass, inputs: Any) -> bool:
    """Whether the pass was made with `inputs`, or with tensors equal to them."""
    if isinstance(inputs, Mapping):
        own = {**found.kwargs}
        return not found.args and own.keys() == inputs.keys() and all(_equal(own[key], inputs[key]) for key in own)
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    return not found.kwargs and len(given) == len(found.args) and all(map(_equal, given, found.args))


def another(found: Pass, inputs: Any) -> bool:
    """Whether the pass was made with another batch than `inputs`, however the two are given: with other values."""
    own, given = tensors((*found.args, *found.kwargs.values())), tensors(inputs)
    if [(t.shape[1:], t.dtype, t.device) for t in own] != [(t.shape[1:], t.dtype, t.device) for t in given]:
        return False  # Given in another form, about which values say nothing.
    return not all(map(_equal, own, given))


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    # A batch that is brought to the device twice is two tensors.
    capturing.hinder("adapt is given another tensor than the model was, so that their values have to be compared")
    return both and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
