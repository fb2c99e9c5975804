"""A model that learns by a rule: its synapses and what they share, and the way back to the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from apical.attaching import connectivity as masks
from apical.attaching import conversion
from apical.attaching.connectivity import Connectivity
from apical.nested import Which
from apical.pathways.base import Pathway
from apical.pathways.taps import Wiring
from apical.per_copy import copies_in, generator_from
from apical.phases.conditions import casting, casts
from apical.phases.layout import Criterion, Layout, OneNetwork
from apical.phases.phase import Phase, Site
from apical.phases.recording import Recorder
from apical.plasticity import Plasticity
from apical.rules import Rule
from apical.step_hooks import watch_optimizers
from apical.synapses.synapse import Synapse


class Learner:
    """A model attached to a rule.

    Attributes:
        model: the model, changed in place.
        rules: module name -> the `Rule` of that synapse.
        synapses: module name -> synapse, with `weight`, `bias` and `feedback` (None where never used).
        blocks: module name -> module, for direct signals that enter at blocks; its `feedback` is [outputs, *features].
        connectivity: module name -> `Connectivity` of that synapse or block.
        generator: source of all randomness of the feedback; of copies side by side, `Streams`.
        adapted: how many times `adapt` was called.
        copies: how many networks lie side by side in the model (see `replicate`).
        layout: how their batches become one, and the losses of each come apart.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: dict[str, Rule],
        generator: torch.Generator,
        output: Which,
        connectivity: dict[str, Connectivity],
    ) -> None:
        self.model = model
        self.rules = rules
        self.generator = generator
        self.connectivity = connectivity
        self.synapses: dict[str, Synapse] = {}
        self.blocks: dict[str, nn.Module] = {}
        self.adapted = 0
        different = list(dict.fromkeys(rules.values()))
        leading = next((one for one in different if one.pathway.wired), different[0])
        self._adapts = any(one.pathway.adapts or one.plasticity.adapts for one in different)
        self.copies: int = copies_in(model)
        self.layout: Layout = OneNetwork()
        self._wiring = Wiring(leading.pathway, output, self.copies)
        self._recorder: Recorder | None = None
        self._features: dict[tuple[torch.Size, ...], dict[str, torch.Size]] = {}
        self._autocast: torch.dtype | None = None
        self._handles: list[Any] = []

    def __repr__(self) -> str:
        return f"Learner({type(self.model).__name__}, rule='{self.name}', synapses={len(self.synapses)})"

    @property
    def rule(self) -> Rule:
        """The one rule of all synapses.

        Raises:
            ValueError: if they have several; see `rules`.
        """
        different = list(dict.fromkeys(self.rules.values()))
        if len(different) > 1:
            raise ValueError(f"the synapses have different rules ({self.name}); learner.rules has them by module name")
        return different[0]

    @property
    def name(self) -> str:
        """The rule's name, or the names of all."""
        return ", ".join(dict.fromkeys(one.name for one in self.rules.values()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "generator": (str(self.generator.device), self.generator.get_state())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        device, random_state = state.pop("generator")
        self.__dict__.update(state)
        self.generator = generator_from(random_state, device)
        watch_optimizers(self)
        masks.watch(self)

    def _silence(self, synapse: Synapse) -> None:
        """No signal ever leaves this synapse: keep no feedback for it."""
        synapse.sends_back = False
        synapse.plasticity.forget(synapse)
        if "feedback_mask" in synapse._buffers:
            synapse._buffers["feedback_mask"] = None

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._wiring.begin()
        again = torch._C._current_graph_task_id() != -1  # Activation checkpointing computes the same pass anew.
        if torch.is_grad_enabled() and not (again or self._wiring.muted):
            for synapse in self.synapses.values():
                if synapse.plasticity.redraws:
                    synapse.plasticity.redraw(synapse, self.generator)
                    synapse.plasticity.thin(synapse)

    @property
    def _device_type(self) -> str:
        # Not by way of the model's parameters: finding the first takes as long as a small layer's product.
        return next(iter(self.synapses.values()))._parameters["weight"].device.type  # type: ignore[union-attr]

    def _casting(self) -> AbstractContextManager[Any]:
        """While open, autocast is as it was in the newest pass that learns."""
        return casting(self._device_type, self._autocast)

    def _see_autocast(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if torch._C._current_graph_task_id() == -1:  # Else activation checkpointing computes the pass anew.
            self._autocast = casts(self._device_type)

    def _end(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self._wiring.end(output)

    def adapt(self, inputs: Any, targets: Any, criterion: Criterion) -> None:
        """Let what learns in a phase of its own learn. Call it between ``backward`` and ``optimizer.step``.

        A no-op for every rule without such a phase, so one training loop serves all rules. Feedback changes in place; the
        gradients of weights are left as they are, except by "reinforce", which fills in those of hidden layers, and
        during a rule's `warmup`, when all gradients are dropped so that the optimizer's step moves nothing. An empty
        batch teaches nothing. Under torch.distributed every process calls it, and all learn the mean.

        Args:
            inputs: the batch that the model has just seen, as the model takes it.
            targets: as the criterion takes them.
            criterion: criterion(outputs, targets) -> losses [N], one per sample; its mean or sum is what the loop
                backpropagates.

        Raises:
            ValueError: if a rule needs losses and the criterion does not give one per sample, or if a learner that has such a
                phase is detached.
            RuntimeError: if a rule compares passes, and the model is random beyond PyTorch's global generator.
        """
        if not self._adapts:
            return
        self._require_synapses()
        parts = self._phases()
        if not parts:
            return
        self._learn(parts, inputs, targets, criterion)
        self.adapted += 1
        if self.adapted <= max(getattr(part, "warmup", 0) for part, _ in parts):
            for parameter in self.model.parameters():
                parameter.grad = None
            if self._wiring.local is not None:
                self._wiring.local.drop()

    def _learn(
        self, parts: list[tuple[Plasticity | Pathway, list[Site]]], inputs: Any, targets: Any, criterion: Criterion
    ) -> None:
        """One phase of all `parts`, from the pass before or one of its own."""
        # What is learned is computed in full; the passes of a phase are made as the loop's was.
        self._autocast = self._autocast or casts(self._device_type)
        try:
            with torch.no_grad(), casting(self._device_type, None):
                phase = Phase(self, self.layout.fold(inputs), targets, criterion)
                for part, sites in [] if phase.empty else parts:
                    phase.sites = sites
                    part.adapt(phase)
                    for site in sites:
                        site.plasticity.thin(site.owner)
        finally:
            if self._recorder is not None:
                self._recorder.newest = None

    def _require_synapses(self) -> None:
        if not self.synapses:
            raise ValueError("the learner is detached, so its model has no synapses any more; call apical.attach again")

    def _phases(self) -> list[tuple[Plasticity | Pathway, list[Site]]]:
        """Everything that has a phase of its own, with the places where its signal enters."""
        found: dict[Plasticity | Pathway, list[Site]] = {}
        for site in self._sites():
            pathway = None if site.name in self.blocks else site.synapse.pathway
            for part in (pathway, site.plasticity):
                if part is not None and part.adapts:
                    found.setdefault(part, []).append(site)
        # Pathways first: plasticities may wait for the errors that they bring.
        return sorted(found.items(), key=lambda pair: not isinstance(pair[0], Pathway))

    def _sites(self) -> list[Site]:
        """All places where a teaching signal enters."""
        synapses = [
            Site(name, synapse, synapse.plasticity, direct=synapse.pathway.wired)
            for name, synapse in self.synapses.items()
            if synapse.sends_back and synapse.plasticity.available(synapse)
        ]
        return synapses + [Site(name, block, self.rule.plasticity, direct=True) for name, block in self.blocks.items()]

    def _buffers(self) -> list[Tensor]:
        """The model's own buffers, without feedback."""
        return [
            buffer
            for module in self.model.modules()
            if not isinstance(module, Synapse)
            for name, buffer in module._buffers.items()
            if buffer is not None and not (name in ("feedback", "feedback_mask") and module in self.blocks.values())
        ]

    def forward_parameters(self) -> list[nn.Parameter]:
        """Every parameter of the model that is not feedback."""
        feedback = {id(p) for p in self.feedback_parameters()}
        return [p for p in self.model.parameters() if id(p) not in feedback]

    def feedback_parameters(self) -> list[nn.Parameter]:
        """Trainable feedback; empty for rules whose feedback no optimizer moves."""
        owners = [*self.synapses.values(), *self.blocks.values()]
        plasticities = [s.plasticity for s in self.synapses.values()] + [self.rule.plasticity for _ in self.blocks]
        pairs = zip(owners, plasticities, strict=True)
        found = (owner._parameters.get("feedback") for owner, plasticity in pairs if plasticity.trainable)
        return [p for p in found if p is not None]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides ``model.state_dict()``, which holds the feedback.

        The generator's state, the names of the synapses that no signal leaves, how often `adapt` was called, and the shapes of
        the activities that its phases have met.
        """
        silent = [name for name, synapse in self.synapses.items() if not synapse.sends_back]
        return {
            "generator": self.generator.get_state(),
            "silent": silent,
            "adapted": self.adapted,
            "features": {key: dict(met) for key, met in self._features.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state made by `state_dict`.

        It drops the feedback that had been dropped. Where that is trainable, and `attach` was given no `example_input`, make the
        optimizer before this call, as it was made before the first forward pass: its own state counts that parameter.

        Raises:
            ValueError: if it is something else, or of another model.
        """
        if set(state) - {"features"} != {"generator", "silent", "adapted"}:
            raise ValueError(
                f"not the state of a learner: it holds {sorted(state)}, not 'generator', 'silent' and 'adapted'"
            )
        unknown = [name for name in state["silent"] if name not in self.synapses]
        if unknown:
            raise ValueError(f"the state is of another model: it names {unknown}, which are no synapses here")
        self.generator.set_state(state["generator"].cpu())
        self.adapted = int(state["adapted"])
        self._features = {key: dict(met) for key, met in state.get("features", {}).items()}
        for name in state["silent"]:
            if not self.synapses[name].pathway.wired:
                self._silence(self.synapses[name])

    def detach(self) -> nn.Module:
        """Give the plain model back: its layers' own classes, no feedback, no hooks. Weights stay as learned.

        Absent connections (see `Connectivity`) stay at zero until the plain model is trained: nothing holds them any more.
        """
        conversion.to_plain(self)
        return self.model


def as_learner(value: object) -> Learner:
    """`value` itself, if it is what `attach` returned.

    Raises:
        TypeError: if not, as for the model.
    """
    if not isinstance(value, Learner):
        raise TypeError(
            f"learner must be what apical.attach returns, got {type(value).__name__}; apical.learner_of(model) has that of a "
            "model that is attached"
        )
    return value


def as_attached(value: object) -> Learner:
    """`as_learner`, whose model has synapses.

    Raises:
        ValueError: if the learner is detached.
    """
    learner = as_learner(value)
    learner._require_synapses()
    return learner
