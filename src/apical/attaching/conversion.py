"""A model's layers become synapses, and plain layers again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.attaching import connectivity as masks
from apical.attaching.dry_run import Probed
from apical.attaching.first_pass import FirstForward
from apical.pathways.base import Pathway
from apical.pathways.layer_wise import LayerWise
from apical.pathways.taps import Wiring
from apical.phases.recording import Recorder
from apical.plasticity import Plasticity
from apical.step_hooks import watch_optimizers
from apical.synapses import memory
from apical.synapses.registry import synapse_type
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.learner import Learner


LEARNER = "_apical_learner"
"""Under which name an attached model holds its learner."""


def to_synapses(learner: Learner, shown: Probed | None, at: Sequence[str] | None) -> None:
    """Synapses with feedback, masks and hooks, for the learner's rules; shown: what a dry run has shown."""
    for name, rule in learner.rules.items():
        # Inside blocks the signal travels layer by layer.
        _swap(learner, name, rule.pathway if at is None else LayerWise(), rule.plasticity)
    masks.draw_weight_masks(learner)
    for name, synapse in learner.synapses.items():
        _prepare(learner, name, synapse, shown)
    for name in at or ():
        assert shown is not None
        block, plasticity = learner.model.get_submodule(name), learner.rule.plasticity
        shape = shown.feedback_shape(shown.blocks[name], learner.copies)
        plasticity.check(block, name, shape)
        plasticity.prepare(block, shape, learner.generator)
        block.register_load_state_dict_post_hook(_ignore_missing_feedback)
        learner.blocks[name] = block
        masks.draw_feedback_mask(block, plasticity, learner.connectivity[name], shape, learner.generator)
    _hook(learner, undecided=shown is None)
    learner.model.__dict__[LEARNER] = learner
    watch_optimizers(learner)
    # Last: feedback may be drawn from the weights as they were, and what fails before leaves them alone.
    masks.thin_weights(learner)


def _swap(learner: Learner, name: str, pathway: Pathway, plasticity: Plasticity) -> None:
    module = learner.model.get_submodule(name)
    kind = synapse_type(module)
    assert kind is not None
    vars(module).update(
        pathway=pathway, plasticity=plasticity, wiring=learner._wiring, label=name, _plain_class=type(module)
    )
    weight = module._parameters["weight"]
    assert weight is not None
    vars(module)["large"] = weight.numel() * weight.element_size() >= memory.SMALLEST
    module.__class__ = kind
    learner.synapses[name] = module  # type: ignore[assignment]


def _prepare(learner: Learner, name: str, synapse: Synapse, shown: Probed | None) -> None:
    signal = None if shown is None else shown.signal(name)
    shape = synapse.weight.shape
    if synapse.pathway.wired:
        assert shown is not None
        synapse.sends_back = signal is not None and name in shown.receivers(chained=synapse.pathway.chained)
        if signal is None or not synapse.sends_back:
            return
        shape = shown.feedback_shape(signal, learner.copies)
    # A layer that the dry run has not met, as one of training alone, may send back as any other.
    silent = shown is not None and name in shown.reached and signal is None and not _tracks(synapse)
    if not silent:
        synapse.plasticity.check(synapse, name, shape)
    # Drawn in any case, so that the stream does not depend on which ones a signal leaves.
    synapse.plasticity.prepare(synapse, shape, learner.generator)
    masks.draw_feedback_mask(synapse, synapse.plasticity, learner.connectivity[name], shape, learner.generator)
    if silent:
        learner._silence(synapse)


def _hook(learner: Learner, *, undecided: bool) -> None:
    model, wiring = learner.model, learner._wiring
    owners = learner.synapses.values()
    if wiring.pathway.wired or any(s.plasticity.redraws for s in owners):
        learner._handles.append(model.register_forward_pre_hook(learner._begin))
        learner._handles.append(model.register_forward_hook(learner._end, always_call=True))
    if wiring.pathway.chained:
        learner._handles += [s.register_forward_hook(wiring.see_output) for s in owners]
    for name, block in learner.blocks.items():
        learner._handles.append(block.register_forward_hook(_BlockTap(wiring, name, learner.rule.plasticity)))
    if learner._adapts:
        learner._handles.append(model.register_forward_pre_hook(learner._see_autocast))
    if any(one.pathway.listens or one.plasticity.listens for one in learner.rules.values()):
        learner._recorder = Recorder(learner)
        learner._handles += learner._recorder.handles
    if undecided and not wiring.pathway.wired and not all(_tracks(s) for s in owners):
        learner._handles += FirstForward(learner).handles


def to_plain(learner: Learner) -> None:
    """Plain layers, without feedback and hooks; weights stay as they are."""
    for handle in learner._handles:
        handle.remove()
    for synapse in learner.synapses.values():
        synapse.plasticity.release(synapse)
        masks.release(synapse)
        plain = vars(synapse)["_plain_class"]
        for name in (
            "pathway",
            "plasticity",
            "wiring",
            "label",
            "_plain_class",
            "sends_back",
            "large",
        ):
            vars(synapse).pop(name, None)
        synapse.__class__ = plain
    for block in learner.blocks.values():
        learner.rule.plasticity.release(block)
        masks.release(block)
        hooks = block._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _ignore_missing_feedback]:
            del hooks[key]
    learner._handles, learner.synapses, learner.blocks, learner._recorder = [], {}, {}, None
    if learner.model.__dict__.get(LEARNER) is learner:
        del learner.model.__dict__[LEARNER]


def _tracks(synapse: Synapse) -> bool:
    return isinstance(synapse.pathway, LayerWise) and synapse.pathway.track


class _BlockTap:
    """Forward hook of a block named in ``at=``: cuts its output and leaves it as a tap. A class, so that models pickle."""

    def __init__(self, wiring: Wiring, label: str, plasticity: Plasticity) -> None:
        self.wiring, self.label, self.plasticity = wiring, label, plasticity

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if self.wiring.muted or not torch.is_grad_enabled():
            return None
        self.wiring.tap(module, self.label, self.plasticity, output)
        return output.detach()


def _ignore_missing_feedback(module: nn.Module, incompatible: Any) -> None:
    # Keys are full names by now; a block's own feedback is the only key that ends so without being a synapse's.
    own = ("feedback", "feedback_mask")
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key.rpartition(".")[2] not in own]
    feedback, mask = module._parameters.get("feedback"), module._buffers.get("feedback_mask")
    feedback = module._buffers.get("feedback") if feedback is None else feedback
    if feedback is not None and mask is not None:
        with torch.no_grad():
            feedback.mul_(mask)
