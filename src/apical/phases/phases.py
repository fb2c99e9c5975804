"""What learns in phases of its own: the parts of one learner, their order, and what they have met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from apical import distributed
from apical.nested import input_of
from apical.pathways.base import Pathway
from apical.pathways.checkpointing import recomputing
from apical.pathways.direct import FromOutput
from apical.per_copy import Streams
from apical.phases.conditions import casting, casts
from apical.phases.isolation import Watch
from apical.phases.listening import listens
from apical.phases.phase import Phase, Site
from apical.phases.recording import Recorder
from apical.plasticity.base import Phased
from apical.step_hooks import missed
from apical.synapses.storage import complete, mask_feedback
from apical.synapses.transformed import compiling

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from apical.learner import Learner
    from apical.phases.layout import Criterion
    from apical.synapses.synapse import Synapse


class _Meeting:
    """A hook that keeps the shape of the first activity that comes to a synapse, by whatever method of the model, and leaves."""

    def __init__(self, synapse: Synapse, met: dict[str, torch.Size]) -> None:
        self.met = met
        self.handle = synapse.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, synapse: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the synapse."""
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and (args or kwargs):
            self.met[synapse.label] = input_of(args, kwargs).shape[1:]
            self.handle.remove()


Part = tuple[Phased, list[Site]]
"""A plasticity or pathway that has a phase of its own, with the places where its signal enters."""


class Phases:
    """The phases of one learner, in which feedback learns between ``backward`` and the optimizer's step.

    Attributes:
        learns: whether any part of the learner's rules has a phase of its own. cuts: whether a pathway has, which then cuts the
            graph of the loop's pass.
        adapted: how many phases there have been.
        features: shapes of the inputs -> name of a place -> shape of the activity there, without the batch.
        met: name of a synapse that learns from noise alone -> shape of the first activity there in a pass of the loop's.
        recorder: keeps the pass before a phase, where some part learns from it. watch: what passes of phases change in the model.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        parts = [part for rule in learner.rules.values() for part in (rule.pathway, rule.plasticity)]
        self.learns = any(isinstance(part, Phased) for part in parts)
        self.cuts = any(isinstance(rule.pathway, Phased) for rule in learner.rules.values())
        self._listens = any(map(listens, parts))
        self.adapted = 0
        self.features: dict[tuple[torch.Size, ...], dict[str, torch.Size]] = {}
        self.met: dict[str, torch.Size] = {}
        self.recorder: Recorder | None = None
        self.watch = Watch(learner.model)
        self._autocast: torch.dtype | None = None

    def install(self) -> Iterable[RemovableHandle]:
        """Put the hooks on the learner's model that phases need."""
        handles: list[RemovableHandle] = []
        if self.learns:
            handles.append(self.learner.model.register_forward_pre_hook(self._see))
        for synapse in self.learner.synapses.values():
            if isinstance(synapse.plasticity, Phased) and not listens(synapse.plasticity):
                handles.append(_Meeting(synapse, self.met).handle)
        if self._listens:
            self.recorder = Recorder(self.learner)
            handles += self.recorder.handles
        return handles

    def sites(self) -> list[Site]:
        """All places where a teaching signal enters."""
        synapses = [
            Site(name, synapse, synapse.plasticity, direct=isinstance(synapse.pathway, FromOutput))
            for name, synapse in self.learner.synapses.items()
            if synapse.sends_back and complete(synapse)
        ]
        blocks = self.learner.blocks.items()
        return synapses + [Site(name, block, self.learner.rule.plasticity, direct=True) for name, block in blocks]

    def parts(self) -> list[Part]:
        """Everything that has a phase of its own, with the places where its signal enters."""
        found: dict[Phased, list[Site]] = {}
        for site in self.sites():
            pathway = None if site.name in self.learner.blocks else site.synapse.pathway
            for part in (pathway, site.plasticity):
                if isinstance(part, Phased):
                    found.setdefault(part, []).append(site)
        # Pathways first: plasticities may wait for the errors that they bring.
        return sorted(found.items(), key=lambda pair: not isinstance(pair[0], Pathway))

    def adapt(self, inputs: Any, targets: Any, criterion: Criterion) -> None:
        """One call of `Learner.adapt`: a phase of all parts; while some of them warm up, no weight gets a gradient."""
        if not self.adapted:
            missed.came(self.learner)
        self._require_whole()
        parts = self.parts()
        if not parts:
            return
        self.learn(inputs, targets, criterion, parts)
        self.adapted += 1
        if self.adapted <= max(part.warmup for part, _ in parts):
            for parameter in self.learner.model.parameters():
                parameter.grad = None
            if self.learner.circuit.updater is not None:
                self.learner.circuit.updater.drop()

    @property
    def warming(self) -> bool:
        """Whether the next phase still drops all gradients."""
        return self.learns and self.adapted < max((part.warmup for part, _ in self.parts()), default=0)

    def seeds(self) -> list[int]:
        """Seeds of one phase's noise, drawn from the learner's generator: one for each of the copies side by side.

        Drawn by all processes alike, so that the learner's own stream stays common; each then has its own.
        """
        source, rank = self.learner.generator, distributed.rank()
        own = source.own if isinstance(source, Streams) else (source,)
        return [int(torch.randint(2**62, (), generator=one, device=one.device)) + rank for one in own]

    def learn(self, inputs: Any, targets: Any, criterion: Criterion, parts: list[Part] | None = None) -> None:
        """One phase of some parts, or all, from the pass before or one of its own."""
        learner = self.learner
        parts = self.parts() if parts is None else parts
        # What is learned is computed in full; the passes of a phase are made as the loop's was.
        self._autocast = self._autocast or casts(self.device_type)
        self.watch.begin()
        try:
            with torch.no_grad(), casting(self.device_type, None):
                phase = Phase(learner, learner.layout.fold(inputs), targets, criterion)
                for part, sites in [] if phase.empty else parts:
                    phase.sites = sites
                    part.adapt(phase)
                    for site in sites:
                        mask_feedback(site.owner)
        finally:
            if self.recorder is not None:
                self.recorder.let_go()

    def doubt(self) -> None:
        """Passes change what they did not change before: see again whether they can be repeated."""
        if self.recorder is not None:
            self.recorder.checked = False

    def _require_whole(self) -> None:
        if (circuit := self.learner.circuit).sharded:  # First, as this is asked in every pass.
            circuit.require_whole(
                f"learner.adapt, by which rule '{self.learner.name}' learns,",
                "use DistributedDataParallel, or a rule without a phase, as 'kp'",
            )

    @property
    def device_type(self) -> str:
        """The kind of device on which the model lies: "cpu" or "cuda"."""
        # Not by way of the model's parameters: finding the first takes as long as a small layer's product.
        weight = next(iter(self.learner.synapses.values()))._parameters["weight"]
        assert weight is not None
        return weight.device.type

    @property
    def autocast(self) -> torch.dtype | None:
        """What autocast turned values into in the newest pass that learns; None where it was off."""
        return self._autocast

    def casting(self) -> AbstractContextManager[Any]:
        """While open, autocast is as it was in the newest pass that learns."""
        return casting(self.device_type, self._autocast)

    def _see(self, module: nn.Module, args: Any) -> None:
        """Pre-hook of the model."""
        if not compiling() and torch.is_grad_enabled() and not recomputing():
            self._require_whole()
            self._autocast = casts(self.device_type)

    @contextmanager
    def unheard(self, paused: bool = True) -> Iterator[None]:
        """While open, passes are made beside the loop's: by this thread alone, as far as they may learn.

        They are not recorded (with `paused` False: they are), and the pass recorded before stays the newest.
        """
        recorder, circuit = self.recorder, self.learner.circuit
        busy, before = circuit.take(), None
        if recorder is not None:
            astray = recorder.astray
            before = recorder.paused, recorder.newest, astray.paused, astray.heard
            recorder.paused, astray.paused, astray.heard = paused, paused, {}
        try:
            yield
        finally:
            if recorder is not None and before is not None:
                recorder.paused, recorder.newest, recorder.astray.paused, recorder.astray.heard = before
            circuit.let(busy)
