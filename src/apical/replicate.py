"""Many independent copies of a network in one pass: copies lie side by side in the channels of every layer.

With n copies, a layer of F features becomes one of n F, copy after copy, whose weights connect each copy to itself alone: grouped
convolutions for convolutions, `ReplicatedLinear` for `nn.Linear`. Activations, pooling, dropout, normalization per channel,
flattening and residual sums then treat every copy as they treat a network of its own, and rules need nothing new.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apical.attachment import attach, attached, learner_of
from apical.copies import Streams, generator_from, merged, tune
from apical.learner import Learner
from apical.outputs import over_tensors, tensors
from apical.probe import run
from apical.registry import synapse_type
from apical.rules import Rule, Rules, shared_out
from apical.side_by_side import faults, side_by_side
from apical.synapse import Synapse

Models = nn.Module | Callable[[], nn.Module] | Sequence[nn.Module]


class Replicas(nn.Module):
    """n copies of a network that are computed together and have nothing in common.

    Made by `replicate`. Call it with the copies' batches, x [n, N, *]; it returns what the copies return, [n, N, *].

    Attributes:
        model: the network that holds all copies, with the names of the single one.
        copies: n.
    """

    def __init__(self, model: nn.Module, copies: int, single: nn.Module) -> None:
        super().__init__()
        self.model, self.copies = model, copies
        vars(self)["_single"] = (single,)  # Not a module of ours: it has no parameters to train.
        vars(self).update(_example=None, _rules=None, _folded=None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Every copy's output for its own batch: x [n, N, *] -> [n, N, *], for every tensor given and returned."""
        result = self.model(*self.fold(args), **self.fold(kwargs))
        return over_tensors(result, self._apart)

    def fold(self, inputs: Any) -> Any:
        """Batches [n, N, *] as `model` takes them: [N, n C, *]; for a tensor, or every tensor of a sequence or dict."""
        return over_tensors(inputs, self._together)

    def _together(self, x: Tensor) -> Tensor:
        if x.dim() < 3 or x.shape[0] != self.copies:
            raise ValueError(
                f"input must be [copies, N, features, ...] with {self.copies} copies first, got shape {list(x.shape)}; "
                f"x.expand({self.copies}, *x.shape) shows one batch to all"
            )
        kept = vars(self)["_folded"]
        if kept is not None and kept[0] is x and kept[1] == x._version:
            return kept[2]
        folded = x.transpose(0, 1).flatten(1, 2)
        # `Learner.adapt` knows the batch of the pass before by its identity.
        vars(self)["_folded"] = None if x.requires_grad or x.is_inference() else (x, x._version, folded)
        return folded

    def _apart(self, y: Tensor) -> Tensor:
        if y.dim() < 2 or y.shape[1] % self.copies:
            raise ValueError(
                f"the output has shape {list(y.shape)}, in which {self.copies} copies do not lie side by side; replicas need "
                "a network that returns [N, outputs, ...]"
            )
        return y.unflatten(1, (self.copies, -1)).transpose(0, 1)

    def split(self) -> list[nn.Module]:
        """The copies as networks of their own, with weights, statistics and, where attached, rule, feedback and generator."""
        (plain,) = vars(self)["_single"]
        models = [copy.deepcopy(plain) for _ in range(self.copies)]
        learner = attached(self)
        if learner is not None:
            example, rules = vars(self)["_example"], vars(self)["_rules"] or [dict(learner.rules)] * self.copies
            shown = None if example is None else over_tensors(example, lambda x: x[0])
            for model, rule, own in zip(models, rules, self.generators, strict=True):
                drawn = generator_from(own.get_state(), own.device)
                _attach_like(learner, model, rule, shown, drawn).adapted = learner.adapted
                drawn.set_state(own.get_state())
        for model, state in zip(models, self.states(), strict=True):
            model.load_state_dict(state)
            model.train(self.training)
        return models

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The source of each copy's randomness, once a rule is attached."""
        source = learner_of(self).generator
        return source.own if isinstance(source, Streams) else [source]

    def states(self) -> list[dict[str, Tensor]]:
        """Each copy's state dict, with the names and shapes of a single network; views where there is more than a number."""
        shares = [
            (name, over_copies(tensor, self.copies, _dimension(self.model, name)))
            for name, tensor in self.model.state_dict().items()
        ]
        return [{name: own[index] for name, own in shares} for index in range(self.copies)]

    def load_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take what `states` gave, or the state dicts of single networks, one for each copy.

        Raises:
            ValueError: if one of them is of another structure.
        """
        mine = self.model.state_dict()
        for number, (own, state) in enumerate(zip(self.states(), states, strict=True), 1):
            if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
                raise ValueError(f"state {number} is of a network built otherwise than these copies")
        for name, tensor in mine.items():
            _put(tensor, [state[name] for state in states], _dimension(self.model, name))

    def optimizer_states(self, state: Mapping[int, Mapping[str, Any]]) -> list[dict[int, dict[str, Any]]]:
        """Each copy's share of an optimizer's ``state_dict()["state"]``, as an optimizer of the single network would have it."""
        shares: list[dict[int, dict[str, Any]]] = [{} for _ in range(self.copies)]
        for key, shape, dimension in self._places():
            for name, value in state.get(key, {}).items():
                whole = isinstance(value, Tensor) and value.shape == shape
                own = value.chunk(self.copies, dimension) if whole else [value] * self.copies
                for share, part in zip(shares, own, strict=True):
                    share.setdefault(key, {})[name] = part
        return shares

    def optimizer_state(self, states: Sequence[Mapping[int, Mapping[str, Any]]]) -> dict[int, dict[str, Any]]:
        """What `optimizer_states` was given, from what it gave."""
        found: dict[int, dict[str, Any]] = {}
        for key, shape, dimension in self._places():
            for name, value in states[0].get(key, {}).items():
                own = [state[key][name] for state in states]
                # As many entries as a copy's share of the parameter: not a number that belongs to all.
                whole = isinstance(value, Tensor) and value.dim() and value.numel() * self.copies == shape.numel()
                found.setdefault(key, {})[name] = torch.cat(own, dimension) if whole else value
        return found

    def _places(self) -> list[tuple[int, torch.Size, int]]:
        """Every parameter's number in an optimizer of them all, its shape, and the dimension in which copies lie."""
        named = self.model.named_parameters()
        return [(key, p.shape, _dimension(self.model, name)) for key, (name, p) in enumerate(named)]

    def share_out(self, rules: Rules | Sequence[Rules]) -> tuple[dict[str, Rule] | Rules, list[Rules]]:
        """What `model` is attached to so that each copy learns by its own rule, and these rules; given one, or one for each."""
        if isinstance(rules, str | Rule | Mapping) or not isinstance(rules, Sequence):
            return rules, [rules] * self.copies
        if len(rules) != self.copies:
            raise ValueError(f"rule must be one, or a list of {self.copies} for {self.copies} copies; got {len(rules)}")
        layers = [name for name, module in self.model.named_modules() if synapse_type(module) is not None]
        chosen = [shared_out(one, layers) for one in rules]
        return {name: merged([own[name] for own in chosen]) for name in layers}, list(rules)

    def tune(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        rates: Sequence[float] | None = None,
        weight_decay: Sequence[float] | None = None,
    ) -> None:
        """Give copies learning rates and weight decay of their own, from the optimizer's next step on.

        Args:
            optimizer: of `torch.optim`, over the copies' parameters, whose steps are proportional to its learning rate:
                SGD, Adam, AdamW, RMSprop, Adagrad and others of their kind. Schedulers work as usual.
            rates: a factor of the optimizer's learning rate for each copy. None: 1 for all.
            weight_decay: for each copy, of the kind the optimizer has (decoupled in AdamW), besides the optimizer's own, which
                is to be 0. None: the optimizer's.

        Raises:
            ValueError: for another optimizer, or numbers that are not one for each copy.
        """
        dimensions = {id(p): _dimension(self.model, name) for name, p in self.model.named_parameters()}
        tune(optimizer, dimensions, self.copies, rates, weight_decay)


def over_copies(tensor: Tensor, copies: int, dimension: int = 0) -> Sequence[Tensor]:
    """Each copy's share of a tensor in which they lie side by side; numbers belong to all."""
    return [tensor] * copies if tensor.dim() == 0 else tensor.chunk(copies, dimension)


def _put(target: Tensor, shares: Sequence[Tensor], dimension: int) -> None:
    with torch.no_grad():
        target.copy_(shares[0] if target.dim() == 0 else torch.cat(list(shares), dimension))


def _attach_like(
    learner: Learner,
    model: nn.Module,
    rule: Rules | Sequence[Rules],
    example: Any,
    generator: torch.Generator | Sequence[torch.Generator],
) -> Learner:
    """Attach `model`, of the same structure, as `learner` is attached to its own."""
    return attach(
        model,
        rule,
        example_input=example,
        generator=generator,
        output=learner._wiring.output,
        connectivity=dict(learner.connectivity),
    )


def _dimension(model: nn.Module, name: str) -> int:
    """In which dimension of an entry of the state dict copies lie: direct feedback is [outputs, n features], the rest [n *]."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return int(leaf in ("feedback", "feedback_mask") and not (isinstance(owner, Synapse) and not owner.pathway.wired))


def replicate(models: Models, n: int | None = None, *, example_input: Any = None) -> Replicas:
    """Several copies of a network, trained in one pass, each with weights and feedback of its own.

    What each copy computes and learns is what it would on its own, to rounding; noise, too, is drawn for each from a generator
    of its own. Rules that compare losses ("np", "sg", "reinforce") call the criterion with the samples of all copies as one
    batch, [n N, *].

    Args:
        models: a network, of which n copies with equal weights are made; a function without arguments that returns one, called
            n times; or networks of one structure. Networks that are attached bring their rule, feedback and generator with
            them; their rules may differ in numbers (epsilon, noise, rate, ...), not in kind.
        n: how many copies; may be left out for a sequence.
        example_input: one batch [N, *] as the single network takes it. Copies are then compared with the networks they were
            made of, and direct rules that come attached need it.

    Returns:
        The `Replicas`; call `apical.attach` on it as on any network. A loss for all copies is
        ``criterion(outputs.flatten(0, 1), y.flatten()).view(n, -1).mean(1).sum()``. `Replicas.tune` gives copies learning rates
        and weight decay of their own.

    Raises:
        ValueError: networks of different structure or rules, a layer that mixes channels, or copies that do not compute what
            the single networks do.
    """
    made = _models(models, n)
    n = len(made)
    learners = [learner for learner in map(attached, made) if learner is not None]
    if learners and len(learners) < n:
        raise ValueError("some of the networks are attached and some are not; attach all or none")
    plain = [copy.deepcopy(learner).detach() for learner in learners] or made
    found = faults(plain[0])
    if found:
        raise ValueError("replicas can't hold this network:\n" + "\n".join(f"- {fault}" for fault in found))
    _check_alike(plain, learners)
    together = copy.deepcopy(plain[0])
    for name, module in list(together.named_modules()):
        replaced = side_by_side(module, n)
        if replaced is not module:
            if not name:
                together = replaced
            else:
                parent, _, leaf = name.rpartition(".")
                setattr(together.get_submodule(parent), leaf, replaced)
    vars(together)["copies"] = n
    _fill(together, plain)
    replicas = Replicas(together, n, copy.deepcopy(plain[0]))
    replicas.train(plain[0].training)
    if example_input is not None:
        _compare(replicas, plain, example_input)
    if learners:
        shown = None if example_input is None else over_tensors(example_input, lambda x: x.expand(n, *x.shape))
        sources = [generator_from(one.generator.get_state(), one.generator.device) for one in learners]
        learner = _attach_like(learners[0], replicas, [dict(one.rules) for one in learners], shown, sources)
        _fill(together, made)
        for mine, its in zip(sources, learners, strict=True):
            mine.set_state(its.generator.get_state())
        learner.adapted = learners[0].adapted
    return replicas


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
        if str(first) != str(model) or mine.keys() != its.keys() or any(mine[k].shape != its[k].shape for k in mine):
            raise ValueError(
                f"network {number} is built otherwise than the first; replicas are copies of one structure"
            )
    for number, learner in enumerate(learners[1:], 2):
        if learner.connectivity != learners[0].connectivity:
            raise ValueError(f"network {number} has another connectivity than the first; replicas have one")


@torch.no_grad()
def _fill(together: nn.Module, models: Sequence[nn.Module]) -> None:
    states = [model.state_dict() for model in models]
    for name, tensor in together.state_dict().items():
        if name not in states[0]:
            raise ValueError(
                f"the networks given have no '{name}'; give example_input as in the call that attached them"
            )
        _put(tensor, [state[name] for state in states], _dimension(together, name))


def _compare(replicas: Replicas, models: Sequence[nn.Module], example: Any) -> None:
    """Raise a ValueError unless copies compute what the single networks do."""
    n = replicas.copies
    modes = [(module, module.training) for model in (replicas, *models) for module in model.modules()]
    try:
        with torch.no_grad():
            ours = tensors(run(replicas.eval(), over_tensors(example, lambda x: x.expand(n, *x.shape))))
            for index, model in enumerate(models):
                for mine, its in zip(ours, tensors(run(model.eval(), example)), strict=True):
                    if mine[index].shape != its.shape or not torch.allclose(mine[index], its, rtol=1e-3, atol=1e-5):
                        raise ValueError(
                            "the copies do not compute what the network computes alone: its forward mixes channels outside "
                            "its layers (a mean or softmax over dimension 1, a fixed view); train copies one by one"
                        )
    finally:
        for module, mode in modes:
            module.training = mode
