"""Many independent copies of a network in one pass: copies lie side by side in the channels of every layer.

With n copies, a layer of F features becomes one of n F, copy after copy, whose weights connect each copy to itself alone: grouped
convolutions for convolutions, `ReplicatedLinear` for `nn.Linear`. Activations, pooling, dropout, normalization per channel,
flattening and residual sums then treat every copy as they treat a network of its own, and rules need nothing new.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from apical.attaching.attach import attached
from apical.learner import Learner
from apical.nested import arguments, over_tensors
from apical.per_copy import generator_from
from apical.phases.layout import SideBySide
from apical.replicas.equivalence import AloneError, check
from apical.replicas.layers import faults, views, widen
from apical.replicas.replicas import Replicas
from apical.replicas.states import dimension_of, put
from apical.replicas.transfer import attach_like, catch_up, silence_like

Models = nn.Module | Callable[[], nn.Module] | Sequence[nn.Module]


def replicate(models: Models, n: int | None = None, *, example_input: Any = None) -> Replicas:
    """Several copies of a network that are trained in one pass, each with weights and feedback of its own.

    For seeds, rules' numbers or learning rates side by side: one pass of n narrow networks costs less than n passes.
    What each copy computes and learns is what it would on its own, to rounding; noise, too, is drawn for each from a generator
    of its own. Modules that a network uses twice, and weights that it has tied, stay so in each copy. Rules that compare losses
    ("np", "sg", "reinforce") call the criterion with the samples of all copies as one batch, [n N, *].

    Args:
        models: a network, of which n copies with equal weights are made; a function without arguments that returns one, called
            n times; or networks of one structure. Networks that are attached bring their rule, feedback and generator with
            them; their rules may differ in numbers (epsilon, noise, rate, ...), not in kind.
        n: how many copies; may be left out for a sequence.
        example_input: one batch [N, *] as the single network takes it. Copies are then compared with the networks they were
            made of at once, not with the first batch (of `attach` or of a pass), which compiled code can't do; and direct rules
            that come attached need it.

    Returns:
        The `Replicas`; call `apical.attach` on it as on any network. A loss for all copies is
        ``criterion(outputs.flatten(0, 1), y.flatten()).view(n, -1).mean(1).sum()``. `Replicas.tune` gives copies learning rates
        and weight decay of their own.

    >>> import apical
    >>> replicas = replicate(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), 5)
    >>> learner = apical.attach(replicas, "fa")
    >>> x, y = torch.randn(5, 8, 4), torch.randint(2, (5, 8))
    >>> outputs = replicas(x)
    >>> outputs.shape
    torch.Size([5, 8, 2])
    >>> nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(5, -1).mean(1).sum().backward()

    Raises:
        ValueError: networks of different structure or rules, hooks, a layer that mixes channels, or copies that do not compute
            what the single networks do.
    """
    made = _models(models, n)
    n = len(made)
    learners = [learner for learner in map(attached, made) if learner is not None]
    if learners and len(learners) < n:
        raise ValueError("some of the networks are attached and some are not; attach all or none")
    plain = [copy.deepcopy(learner).detach() for learner in learners] or made
    # Views in the networks as given: no copy of them has any.
    found = dict.fromkeys(
        fault for model, given in zip(plain, made, strict=True) for fault in faults(model) + views(given)
    )
    if found:
        raise ValueError("replicas can't hold this network:\n" + "\n".join(f"- {fault}" for fault in found))
    _check_alike(plain, learners)
    together = copy.deepcopy(plain[0])
    widen(together, n)
    _fill(together, plain)
    replicas = Replicas(together, n, copy.deepcopy(plain[0]))
    replicas.train(plain[0].training)
    shown = None if example_input is None else over_tensors(example_input, lambda x: x.expand(n, *x.shape))
    if shown is not None:
        try:
            replicas.compared = check(together, SideBySide(n), plain, *arguments(shown))
        except AloneError as error:
            raise ValueError(f"example_input does not pass through the network: {error.__cause__}") from error.__cause__
    if learners:
        _attach(replicas, learners, shown)
    return replicas


def _attach(replicas: Replicas, learners: Sequence[Learner], example: Any) -> None:
    """Attach copies as the networks they were made of are, and bring them to where those are."""
    sources = [generator_from(one.generator.get_state(), one.generator.device) for one in learners]
    learner = attach_like(learners[0], replicas, [dict(one.rules) for one in learners], example, sources)
    catch_up(learner, learners[0], lambda units: units * replicas.copies)
    for one in learners[1:]:
        silence_like(learner, one)
    _fill(replicas.model, [one.model for one in learners])
    for mine, its in zip(sources, learners, strict=True):
        mine.set_state(its.generator.get_state())


def _models(models: Models, n: int | None) -> list[nn.Module]:
    if isinstance(models, nn.Module) or callable(models):
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be how many copies to make, at least 1, got {n!r}")
        made = [models] * n if isinstance(models, nn.Module) else [models() for _ in range(n)]
    else:
        made = list(models)
        if n is not None and n != len(made):
            raise ValueError(f"n is {n}, but {len(made)} networks were given; leave n out")
    if not made or not all(isinstance(model, nn.Module) for model in made):
        raise TypeError(f"models must be a network, a function that returns one, or networks; got {models!r}")
    return made


def _check_alike(models: Sequence[nn.Module], learners: Sequence[Learner]) -> None:
    first = models[0]
    for number, model in enumerate(models[1:], 2):
        mine, its = first.state_dict(), model.state_dict()
        alike = str(first) == str(model) and mine.keys() == its.keys() and _shared(first) == _shared(model)
        if not alike or any(mine[k].shape != its[k].shape for k in mine):
            raise ValueError(
                f"network {number} is built otherwise than the first; replicas are copies of one structure"
            )
    for number, learner in enumerate(learners[1:], 2):
        if learner.blocks.keys() != learners[0].blocks.keys():
            raise ValueError(
                f"network {number} is attached at= {list(learner.blocks)}, the first at= {list(learners[0].blocks)}"
            )
        if learner.connectivity != learners[0].connectivity:
            raise ValueError(f"network {number} has another connectivity than the first; replicas have one")


def _shared(model: nn.Module) -> list[list[str]]:
    """Names of the modules, parameters and buffers that the model holds more than once."""
    names: dict[int, list[str]] = {}
    for named in (model.named_modules, model.named_parameters, model.named_buffers):
        for name, one in named(remove_duplicate=False):
            names.setdefault(id(one), []).append(name)
    return [own for own in names.values() if len(own) > 1]


@torch.no_grad()
def _fill(together: nn.Module, models: Sequence[nn.Module]) -> None:
    states = [model.state_dict() for model in models]
    for name, tensor in together.state_dict().items():
        if any(name not in state for state in states):
            raise ValueError(
                f"the networks given have no '{name}'; give example_input as in the call that attached them"
            )
        put(tensor, [state[name] for state in states], dimension_of(together, name))
