"""A model's layers become synapses, and plain layers again. Each step leaves its own way back in `learner.undo`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from apical import step_hooks
from apical.attaching import connectivity
from apical.attaching.first_pass import FirstLook, FirstPass
from apical.pathways import FromOutput, Indirect, LayerWise, Pathway
from apical.pathways.factored.common import Common
from apical.pathways.subspace import aside
from apical.plasticity import Plasticity, Trained
from apical.synapses import memory
from apical.synapses.registry import synapse_type
from apical.synapses.storage import (
    CURRENT,
    MASKS,
    PROJECTION,
    SEED,
    drop,
    kept,
    mask_feedback,
    names_kept,
    release,
    shape_by,
)
from apical.synapses.synapse import Synapse
from apical.synapses.ties import settle_ties

if TYPE_CHECKING:
    from apical.attaching.dry_run import Shown
    from apical.learner import Learner

LEARNER = "_apical_learner"
"""Under which name an attached model holds its learner."""


class Held:
    """Feedback and masks of the layers of a learner, to be put back after a new conversion wherever their shapes still fit."""

    def __init__(self, learner: Learner) -> None:
        self._tensors: dict[nn.Module, dict[str, Tensor]] = {}
        self._followed = {learner.synapses[name]: passes for name, passes in learner.followed.items()}
        emptied = learner.circuit.emptied
        for name, owner in learner.owners.items():
            if name not in emptied and not (emptied and name in learner.blocks):
                stores = {**owner._buffers, **owner._parameters}
                names = (*names_kept(owner), *MASKS)
                self._tensors[owner] = {key: t for key in names if (t := stores.get(key)) is not None}

    def find(self, name: str, shape: torch.Size) -> Tensor | None:
        """What some layer had under a name, if it is of that shape."""
        found = (tensors.get(name) for tensors in self._tensors.values())
        return next((tensor for tensor in found if tensor is not None and tensor.shape == shape), None)

    def put_back(self, learner: Learner) -> None:
        """Let every layer have its own again, parameters by identity, so that optimizers hold on to them."""
        for owner in learner.owners.values():
            held = self._tensors.get(owner, {})
            drawn = {key: t for key in (*names_kept(owner), "feedback_mask") if (t := kept(owner, key)) is not None}
            if all(key in held and held[key].shape == tensor.shape for key, tensor in drawn.items()):
                for key in drawn:
                    _store(owner, key, held[key])
                if isinstance(owner, Synapse) and owner.subspace is not None:
                    owner.subspace.passes = self._followed.get(owner, 0)
                if (feedback := owner._parameters.get("feedback")) is not None:
                    weight = owner._parameters.get("weight")
                    feedback.requires_grad_(weight is None or weight.requires_grad)
            mask = owner._buffers.get("weight_mask")
            if mask is not None and "weight_mask" in held and held["weight_mask"].shape == mask.shape:
                owner._buffers["weight_mask"] = held["weight_mask"]


def _store(owner: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        owner._parameters[name] = tensor
    else:
        owner._buffers[name] = tensor


def convert(learner: Learner, shown: Shown | None, at: Sequence[str] | None, held: Held | None = None) -> None:
    """Make the layers of a learner's model synapses, with feedback, masks and hooks.

    Args:
        learner: new, with rules for all layers. shown: by a dry run. at: names of blocks at which direct signals enter.
        held: what layers had before that were attached already.
    """
    for name, rule in learner.rules.items():
        # Inside blocks the signal travels layer by layer.
        _swap(learner, name, rule.pathway if at is None else LayerWise(), rule.plasticity)
    connectivity.draw_weight_masks(learner)
    forms = () if shown is None else shown.forms.values()
    common = Common(forms, learner.generator, _nothing if held is None else held.find)
    for name, synapse in learner.synapses.items():
        _give_feedback(learner, name, synapse, shown, common)
    # After all feedback, which is so the same as without.
    sources = aside(learner.generator)
    for synapse in learner.synapses.values():
        if isinstance(synapse.pathway, LayerWise):
            _reduce(synapse, synapse.pathway, sources)
    for name in at or ():
        assert shown is not None
        _give_block_feedback(learner, name, shown, common)
    if held is not None:
        held.put_back(learner)
    earlier: list[Synapse] = []
    for synapse in learner.synapses.values():
        settle_ties(synapse, earlier)
        earlier.append(synapse)
    _install_hooks(learner, undecided=shown is None)
    vars(learner.model)[LEARNER] = learner
    learner.undo.append(partial(_forget_learner, learner.model))
    step_hooks.watch(learner)
    # Last: feedback may be drawn from the weights as they were, and what fails before leaves them alone.
    connectivity.mask_weights(learner)
    # And first when detached: somebody may have written to them since the last pass.
    learner.undo.append(partial(connectivity.mask_weights, learner))


def _swap(learner: Learner, name: str, pathway: Pathway, plasticity: Plasticity) -> None:
    """Turn one layer into a synapse, by its class."""
    module = learner.model.get_submodule(name)
    kind, plain = synapse_type(module), type(module)
    assert kind is not None
    before = set(vars(module))
    module.__class__ = kind
    assert isinstance(module, Synapse)
    learner.synapses[name] = module
    learner.undo.append(partial(_swap_back, module, plain, frozenset(before)))
    if module.computed:
        _compute(module)
    module.circuit, module.label, module.pathway, module.plasticity = learner.circuit, name, pathway, plasticity
    weight = module.weight_now
    module.large = weight.numel() * weight.element_size() >= memory.SMALLEST


def _compute(module: Synapse) -> None:
    """The weights as a pass would compute them now, without moving what such a pass moves in training."""
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    with torch.no_grad():
        # What an older function computed before the network was moved to another precision is in the former one still.
        vars(module)[CURRENT] = module.weight.detach().clone().to(next(module.parameters()))
    for one, training in modes:
        one.training = training


def _swap_back(module: nn.Module, plain: type[nn.Module], before: frozenset[str]) -> None:
    computed = getattr(module, "computed", False)
    release(module)
    vars(module).pop(CURRENT, None)
    # Attributes that make it a synapse; a user's own stay.
    for name in vars(module).keys() & (Synapse.__annotations__.keys() - before):
        del vars(module)[name]
    if parametrize.is_parametrized(module) and not computed:
        # PyTorch has derived a class from the synapse's since; one like it is derived from the plain layer's.
        own = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        plain = type(f"Parametrized{plain.__name__}", (plain,), own)
    module.__class__ = plain


def _nothing(name: str, shape: torch.Size) -> None:
    return None


def _prepare(learner: Learner, name: str, owner: nn.Module, shape: torch.Size, shown: Shown, common: Common) -> None:
    """Give an owner direct feedback to activity of `shape`."""
    plasticity = owner.plasticity if isinstance(owner, Synapse) else learner.rule.plasticity
    form = shown.forms.get(name)
    full = shown.feedback_shape(shape, learner.copies) if form is None else form.shape
    shape_by(owner, form)
    plasticity.check(owner, name, full)
    if form is None:
        plasticity.prepare(owner, full, learner.generator)
    else:
        common.prepare(owner, plasticity, form)
    connectivity.draw_feedback_mask(learner, owner, name, full)


def _give_feedback(learner: Learner, name: str, synapse: Synapse, shown: Shown | None, common: Common) -> None:
    signal = None if shown is None else shown.signal(name)
    shape = synapse.weight_now.shape
    synapse.derived = shown is not None and shown.derived(name)
    if isinstance(synapse.pathway, FromOutput):
        assert shown is not None
        synapse.sends_back = signal is not None and name in shown.receivers(isinstance(synapse.pathway, Indirect))
        if signal is not None and synapse.sends_back:
            _prepare(learner, name, synapse, signal, shown, common)
        return
    # A layer that the dry run has not met, as one of training alone, may send back as any other.
    silent = shown is not None and name in shown.reached and signal is None and not _tracks(synapse)
    if not silent:
        _check_computed(synapse, name)
        synapse.plasticity.check(synapse, name, shape)
    # Drawn in any case, so that the stream does not depend on which ones a signal leaves.
    synapse.plasticity.prepare(synapse, shape, learner.generator)
    connectivity.draw_feedback_mask(learner, synapse, name, shape)
    if silent:
        synapse.sends_back = False
        drop(synapse)


def _reduce(synapse: Synapse, pathway: LayerWise, sources: Sequence[torch.Generator]) -> None:
    """Have a synapse seen through few directions of its error, if its pathway says so and a signal leaves it."""
    pathway.reduce(synapse, sources)
    if not synapse.sends_back and synapse.subspace is not None:
        synapse.subspace = None
        drop(synapse)


def _check_computed(synapse: Synapse, name: str) -> None:
    if synapse.computed and isinstance(synapse.pathway, LayerWise) and isinstance(synapse.plasticity, Trained):
        raise ValueError(
            f"plasticity '{synapse.plasticity.name}' moves the feedback of '{name}' with its weights, but the layer computes "
            "them from others in every pass, so the two would not come to be alike; give it a rule of its own in a dict of rules "
            f"({{'': ..., '{name}': 'fa'}}), or make its weights parameters"
        )


def _give_block_feedback(learner: Learner, name: str, shown: Shown, common: Common) -> None:
    block = learner.model.get_submodule(name)
    learner.undo.append(partial(release, block))
    _prepare(learner, name, block, shown.blocks[name], shown, common)
    learner.undo.append(block.register_load_state_dict_post_hook(_after_loading).remove)
    learner.blocks[name] = block


def _install_hooks(learner: Learner, *, undecided: bool) -> None:
    pathways = dict.fromkeys([rule.pathway for rule in learner.rules.values()])
    pathways |= dict.fromkeys(synapse.pathway for synapse in learner.synapses.values())
    handles = [handle for pathway in pathways for handle in pathway.install(learner)]
    handles += learner.phases.install()
    owners = learner.synapses.values()
    if undecided and not any(isinstance(one, FromOutput) for one in pathways) and not all(map(_tracks, owners)):
        handles += FirstPass(learner).handles
    handles.append(FirstLook(learner).handle)
    learner.undo += [handle.remove for handle in handles]


def _forget_learner(model: nn.Module) -> None:
    vars(model).pop(LEARNER, None)


def _tracks(synapse: Synapse) -> bool:
    return isinstance(synapse.pathway, LayerWise) and synapse.pathway.track


def _after_loading(module: nn.Module, incompatible: Any) -> None:
    """Hook of a block's `load_state_dict`: a plain model's state carries no feedback, and what is loaded may need its mask."""
    # Keys are full names by now; a block's own feedback is the only key that ends so without being a synapse's.
    own = ("feedback", "feedback_mask", PROJECTION, SEED)
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key.rpartition(".")[2] not in own]
    if kept(module, "feedback") is not None:
        mask_feedback(module)
