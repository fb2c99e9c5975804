"""Sparse connectivity: which forward and which feedback connections exist at all (reference 1.13).

Masks are drawn once and stay. Absent connections are kept at zero in W and in the feedback themselves, so that teaching signals,
measures and audits need to know nothing: what changes a weight is masked, and every forward pass sets to zero what others have
written there by hand (`Synapse.disconnect`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical.attaching.by_module import by_nearest
from apical.checks import fits
from apical.composites import lent
from apical.pathways import Direct, FromOutput
from apical.per_copy import Streams
from apical.plasticity.regression import Regression
from apical.rules import Rule
from apical.synapses.registry import synapse_type
from apical.synapses.storage import mask_feedback, names_kept
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.learner import Learner


@dataclass(frozen=True)
class Connectivity:
    """Fractions of the connections that exist (lillicrap2016, Supp. Fig. 5: half of W and of B; amit2019).

    Every element of W exists with probability `weight`, every element of the feedback (layer-wise B or direct D) with
    probability `feedback`, independently: at 0.5 a quarter of all pairs is reciprocal. Elements that exist keep the values they
    have (no rescaling); biases are never thinned.

    Each has one mask of zeros and ones, drawn once: `weight_mask` and `feedback_mask` of the synapse, in its state dict. Outside
    of theirs W and the feedback are zero after every step of any optimizer and in every forward pass, whoever has written to them
    in between, and so is every update.

    Which layers: amit2019's code [C] thins all but the last dense layer; lillicrap2016 is read [R] as the last layer alone.

    Feedback that is the weights themselves ("transport": bp) is W as thinned and has no mask of its own. Signs of the weights
    exist where both W and the feedback do.

    Raises:
        ValueError: for fractions that are not above 0 and at most 1.

    >>> import apical, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Tanh(), torch.nn.Linear(30, 5))
    >>> learner = apical.attach(net, "fa", connectivity={"0": apical.Connectivity(weight=0.5)})
    >>> 0.4 < float((net[0].weight != 0).float().mean()) < 0.6
    True
    """

    weight: float = 1.0
    feedback: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "feedback"):
            value = getattr(self, name)
            if not fits(value, float) or not 0 < value <= 1:
                raise ValueError(
                    f"connectivity of {name} must be the fraction of connections that exist, above 0 and at most 1, "
                    f"got {value!r}"
                )


FULL = Connectivity()

Connectivities = float | Connectivity | Mapping[str, float | Connectivity]
"""One for the whole model, or module names -> one each: every layer takes that of the nearest module around it."""


def as_connectivity(value: Any) -> Connectivity:
    """A `Connectivity` from what `attach` takes; a number stands for weights and feedback alike."""
    if isinstance(value, Connectivity):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Connectivity(value, value)
    raise TypeError(
        f"connectivity must be a number, a Connectivity, or a dict from module names to these, got {value!r}; "
        "0.5 leaves half of the connections, forward and back"
    )


def connectivities_of(value: Connectivities | None, names: Sequence[str]) -> dict[str, Connectivity]:
    """Module name -> connectivity; what a dict says nothing about is fully connected.

    Raises:
        ValueError: if the dict names something that none of `names` lies in. TypeError: for a value of the wrong kind.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, FULL if value is None else as_connectivity(value))
    chosen = {key: as_connectivity(given) for key, given in value.items()}
    return dict.fromkeys(names, FULL) | by_nearest("connectivity", chosen, names)


def check(model: nn.Module, rules: Mapping[str, Rule], shares: Mapping[str, Connectivity]) -> None:
    """Raise a ValueError with all that can't be thinned, before anything is changed."""
    found = []
    for name, share in shares.items():
        rule = rules.get(name) or next(iter(rules.values()))
        if share.feedback < 1 and isinstance(rule.pathway, Direct) and not rule.pathway.kept_in_full:
            found.append(
                f"the feedback of '{name}' is made by rank=, shared= or seeded= from less than one number for a connection, so "
                f"single ones can't be absent; leave these out, or its feedback whole with connectivity={{'{name}': "
                f"apical.Connectivity(weight={share.weight:g})}}"
            )
        if share.feedback < 1 and isinstance(rule.plasticity, Regression) and rule.plasticity.solves_as_a_whole:
            found.append(
                f"the feedback of '{name}' is solved for as a whole by rule '{rule.name}' as it is set up; use solver='sgd', or "
                f"leave its feedback whole with connectivity={{'{name}': apical.Connectivity(weight={share.weight:g})}}"
            )
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        kept_for_maps = lent(module)
        for key, parameter in module._parameters.items():
            if key not in kept_for_maps:
                holders.setdefault(id(parameter), []).append(name)
    for name in rules:
        kind = synapse_type(model.get_submodule(name))
        if shares[name].weight < 1 and kind is not None and kind.computed:
            found.append(
                f"'{name}' computes its weights anew in every pass, so connections can't be taken from them; leave them whole "
                f"with connectivity={{'{name}': apical.Connectivity(feedback=...)}}"
            )
        weight = model.get_submodule(name)._parameters.get("weight")
        others = [other for other in holders.get(id(weight), []) if other != name]
        if shares[name].weight == 1:
            continue
        for other in others:
            if other not in rules or shares[other].weight != shares[name].weight:
                found.append(
                    f"the weights of '{name}' are those of '{other or '(the model itself)'}' as well, which is not thinned "
                    f"alike; give both the same connectivity, or leave '{name}' fully connected"
                )
    if found:
        raise ValueError("can't thin these connections:\n" + "\n".join(f"- {one}" for one in found))


def _draw(shape: torch.Size, share: float, generator: torch.Generator, like: Tensor, dimension: int = 0) -> Tensor:
    """A mask; for copies side by side in a dimension, each one's from its own generator."""
    sources = generator.own if isinstance(generator, Streams) else (generator,)
    own = [size // len(sources) if d == dimension else size for d, size in enumerate(shape)]
    drawn = [torch.rand(own, generator=one, device=one.device) for one in sources]
    return (torch.cat(drawn, dimension) < share).to(like)


def draw_weight_masks(learner: Learner) -> None:
    """Draw a mask for the weights of every synapse that is sparse; one for all that share them.

    They are drawn before any feedback, so that all rules that start from one seed have the same forward connections.
    """
    drawn: dict[int, Tensor] = {}
    for name, synapse in learner.synapses.items():
        share, weight = learner.connectivity[name], synapse.weight_now
        synapse.sparse = share != FULL
        if share.weight == 1:
            continue
        if id(weight) not in drawn:
            drawn[id(weight)] = _draw(weight.shape, share.weight, learner.generator, weight)
        synapse.register_buffer("weight_mask", drawn[id(weight)])


def draw_feedback_mask(learner: Learner, owner: nn.Module, name: str, shape: torch.Size) -> None:
    """Draw a mask for feedback of `shape` on `owner`, and apply it; none where feedback is the weights themselves."""
    share = learner.connectivity[name]
    computed = isinstance(owner, Synapse) and owner.connection.resolve is not None
    if share.feedback == 1 or not (names_kept(owner) or computed):
        return
    like = next(iter(owner.parameters()), None)
    like = torch.empty(0) if like is None else like
    layerwise = isinstance(owner, Synapse) and not isinstance(owner.pathway, FromOutput)
    mask = _draw(shape, share.feedback, learner.generator, like, dimension=0 if layerwise else 1)
    owner.register_buffer("feedback_mask", mask)
    mask_feedback(owner)


@torch.no_grad()
def mask_weights(learner: Learner) -> None:
    """Take absent connections out of the weights."""
    for synapse in learner.synapses.values():
        mask = synapse._buffers.get("weight_mask")
        if mask is not None and not synapse.computed:  # A pruned layer has a mask of its own by this name.
            synapse.weight.mul_(mask)
