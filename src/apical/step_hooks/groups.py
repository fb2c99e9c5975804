"""Feedback that Kolen and Pollack's law makes alike to its weights has to move as they do: by their options, and their gradient.

Parameter groups made of names put it with the biases. There it takes the options of its weights' group while the optimizer
steps, unless its group is of feedback alone, which is somebody's choice.
"""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer

OPTIONS = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "alpha", "rho", "maximize")
"""What decides, in a group of an optimizer, how its parameters move."""


class _Regrouping:
    """Hooks of one optimizer: before its step feedback goes to its weights' group, and back after it.

    Groups are the user's, and so is the layout of the optimizer's state dict, which goes by them.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.moves: dict[nn.Parameter, int] = {}
        self.lists: list[list[nn.Parameter]] | None = None
        optimizer.register_step_pre_hook(self.join)
        optimizer.register_step_post_hook(self.part)

    def join(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        if self.lists is not None:  # A step has failed.
            return
        self.lists = [group["params"] for group in groups]
        for group in groups:
            group["params"] = []
        for number, parameters in enumerate(self.lists):
            for parameter in parameters:
                groups[self.moves.get(parameter, number)]["params"].append(parameter)

    def part(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group, parameters in zip(optimizer.param_groups, self.lists or (), strict=False):
            group["params"] = parameters
        self.lists = None


_regroupings: weakref.WeakKeyDictionary[Optimizer, _Regrouping] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[Optimizer, set[str]] = weakref.WeakKeyDictionary()
"""Warnings that were given of an optimizer."""


def follow(optimizer: Optimizer, owners: Mapping[str, nn.Module], rule: str) -> dict[nn.Parameter, int]:
    """Feedback that is to move with its weights, but lies in another group -> the number of the weights' group.

    From now on it goes there while the optimizer steps. There is a warning if the two groups have different options, once for
    each optimizer.
    """
    groups = optimizer.param_groups
    place = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
    found, every = {}, {id(owner._parameters.get("feedback")) for owner in owners.values()}
    for name, weight, feedback in _followers(owners):
        its, own = place.get(id(weight)), place.get(id(feedback))
        if its is None or own is None or its == own:
            continue
        chosen = all(id(p) in every for p in groups[own]["params"])
        different = [key for key in OPTIONS if bool(groups[its].get(key) != groups[own].get(key))]
        if different:
            forth, back = (", ".join(f"{key}={groups[one].get(key)}" for key in different) for one in (its, own))
            _tell(
                optimizer,
                f"the feedback of '{name}' lies in parameter group {own} of the optimizer ({back}), its weights in group {its} "
                f"({forth}), but rule '{rule}' makes them alike (Kolen-Pollack) only if both move alike: "
                + ("put them into one group" if chosen else f"it takes the options of group {its}; put it there"),
            )
        if not chosen:
            found[feedback] = its
    if found:
        if optimizer not in _regroupings:
            _regroupings[optimizer] = _Regrouping(optimizer)
        _regroupings[optimizer].moves.update(found)
    return found


def tell_unlike_gradients(optimizer: Optimizer, model: nn.Module, owners: Mapping[str, nn.Module], rule: str) -> None:
    """Warn if weights have another gradient than the feedback that follows them, as if only they were clipped.

    Weights that several modules hold are left out.
    """
    times = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, weight, feedback in _followers(owners):
        one, other = weight.grad, feedback.grad
        if times[id(weight)] > 1 or one is None or other is None or "feedback_mask" in owners[name]._buffers:
            continue
        if bool((one - other).norm() > 1e-3 * one.norm()):
            _tell(
                optimizer,
                f"the gradient of the feedback of '{name}' is not that of its weights at this step, so under rule "
                f"'{rule}' they don't come to be alike: clip both or none, and leave penalties to weight_decay",
            )


def _followers(owners: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Name, weights and feedback of each layer whose feedback moves by its weights' own gradient."""
    for name, owner in owners.items():
        weight, feedback = owner._parameters.get("weight"), owner._parameters.get("feedback")
        pathway, plasticity = getattr(owner, "pathway", None), getattr(owner, "plasticity", None)
        follows = getattr(pathway, "name", "") == "layer-wise" and getattr(plasticity, "follows_weights", False)
        if weight is not None and feedback is not None and follows:
            yield name, weight, feedback


def _tell(optimizer: Optimizer, words: str) -> None:
    told = _told.setdefault(optimizer, set())
    if words not in told:
        told.add(words)
        warnings.warn(words, stacklevel=6)
