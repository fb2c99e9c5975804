"""Independent copies of a network in one module: copies lie side by side in the channels of every layer (see `replicate`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from apical.attaching.attach import attach, attached, learner_of
from apical.attaching.by_module import Rules, shared_out
from apical.learner import Learner
from apical.nested import over_tensors, tensors
from apical.per_copy import Streams, generator_from
from apical.replicas.equivalence import AloneError, check
from apical.replicas.optimizers import tune
from apical.replicas.rules import merged
from apical.rules import Rule
from apical.synapses.registry import synapse_type
from apical.synapses.synapse import Synapse


class Replicas(nn.Module):
    """n copies of a network that are computed together and have nothing in common.

    Made by `replicate`. Call it with the copies' batches, x [n, N, *]; it returns what the copies return, [n, N, *].

    Attributes:
        model: the network that holds all copies, with the names of the single one.
        copies: n.
        compared: whether copies have been seen to compute what they do alone. The first batch that passes shows it.
    """

    compared: bool = False

    def __init__(self, model: nn.Module, copies: int, single: nn.Module) -> None:
        super().__init__()
        self.model, self.copies = model, copies
        vars(self)["_single"] = (single,)  # Not a module of ours: it has no parameters to train.
        vars(self).update(_example=None, _rules=None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Every copy's output for its own batch: x [n, N, *] -> [n, N, *], for every tensor given and returned.

        Raises:
            ValueError: at the first batch, if copies do not compute what the single network does.
        """
        folded = self.fold(args), self.fold(kwargs)
        # Code that is compiled or transformed by torch.func can't branch on values.
        if not (torch.compiler.is_compiling() or self.compared or torch._C._are_functorch_transforms_active()):
            self.compare(args, kwargs)
        result = self.model(*folded[0], **folded[1])
        return over_tensors(result, self._apart)

    def compare(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise a ValueError if copies do not compute what the single network does; once, by the first batch that can tell."""
        given = tensors((args, kwargs))
        if self.compared or self.copies == 1 or any(x.is_meta or not x.numel() for x in given):
            return
        (plain,) = vars(self)["_single"]
        # What fails for a network alone is an error of the batch, which the pass itself tells.
        with suppress(AloneError):
            self.compared = check(self, [plain] * self.copies, args, kwargs)

    def fold(self, inputs: Any) -> Any:
        """Batches [n, N, *] as `model` takes them: [N, n C, *]; for a tensor, or every tensor of a sequence or dict."""
        return over_tensors(inputs, self._together)

    def _together(self, x: Tensor) -> Tensor:
        if x.dim() < 3 or x.shape[0] != self.copies:
            raise ValueError(
                f"input must be [copies, N, features, ...] with {self.copies} copies first, got shape {list(x.shape)}; "
                f"x.expand({self.copies}, *x.shape) shows one batch to all"
            )
        # Anew each time: nothing tells whether the same tensor still holds the same batch (a loader may refill its memory).
        return x.transpose(0, 1).flatten(1, 2)

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
                single = attach_like(learner, model, rule, shown, drawn)
                catch_up(single, learner, lambda units: units // self.copies)
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
            (name, _over_copies(tensor, self.copies, dimension_of(self.model, name)))
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
            put(tensor, [state[name] for state in states], dimension_of(self.model, name))

    def optimizer_states(self, state: Mapping[int, Mapping[str, Any]]) -> list[dict[int, dict[str, Any]]]:
        """Each copy's share of an optimizer's ``state_dict()["state"]``, as an optimizer of the single network would have it.

        Numbered as the given one: it counts feedback that was dropped in the first pass if the optimizer was made before.
        """
        shares: list[dict[int, dict[str, Any]]] = [{} for _ in range(self.copies)]
        for key, shape, dimension in self._places(state, 1):
            for name, value in state.get(key, {}).items():
                whole = isinstance(value, Tensor) and value.shape == shape
                own = value.chunk(self.copies, dimension) if whole else [value] * self.copies
                for share, part in zip(shares, own, strict=True):
                    share.setdefault(key, {})[name] = part
        return shares

    def optimizer_state(self, states: Sequence[Mapping[int, Mapping[str, Any]]]) -> dict[int, dict[str, Any]]:
        """What `optimizer_states` was given, from what it gave."""
        found: dict[int, dict[str, Any]] = {}
        for key, shape, dimension in self._places(states[0], self.copies):
            for name, value in states[0].get(key, {}).items():
                own = [state[key][name] for state in states]
                # As many entries as a copy's share of the parameter: not a number that belongs to all.
                whole = isinstance(value, Tensor) and value.dim() and value.numel() * self.copies == shape.numel()
                found.setdefault(key, {})[name] = torch.cat(own, dimension) if whole else value
        return found

    def _places(self, state: Mapping[int, Mapping[str, Any]], parts: int) -> list[tuple[int, torch.Size, int]]:
        """Every parameter's number in an optimizer of them all, its shape, and the dimension in which copies lie.

        An optimizer made before the first pass counts feedback that the pass has dropped, one made after does not; which of
        them `state` is of, in which tensors are one of `parts` of a parameter, the shapes in it tell.
        """
        met = [(shape, dimension_of(self.model, name), dropped) for name, shape, dropped in _parameters(self.model)]
        numberings = [
            [(key, shape, dimension) for key, (shape, dimension, _) in enumerate(own)]
            for own in (met, [one for one in met if not one[2]])
        ]

        def fitting(places: list[tuple[int, torch.Size, int]]) -> int:
            shares = {key: (*shape[:d], shape[d] // parts, *shape[d + 1 :]) for key, shape, d in places}
            return sum(
                key in shares and any(isinstance(x, Tensor) and x.shape == shares[key] for x in own.values())
                for key, own in state.items()
            )

        return max(numberings, key=fitting)

    def share_out(
        self, rules: Rules | Sequence[Rules], at: Sequence[str] | None = None
    ) -> tuple[dict[str, Rule] | Rules, list[Rules]]:
        """What `model` is attached to so that each copy learns by its own rule, and these rules; given one, or one for each."""
        if isinstance(rules, str | Rule | Mapping) or not isinstance(rules, Sequence):
            return rules, [rules] * self.copies
        if len(rules) != self.copies:
            raise ValueError(f"rule must be one, or a list of {self.copies} for {self.copies} copies; got {len(rules)}")
        layers = [name for name, module in self.model.named_modules() if synapse_type(module) is not None]
        chosen = [shared_out(one, layers) for one in rules]
        # Numbers would lie along other dimensions of the feedback of blocks than of the layers inside them.
        other = None if at is None else next((i for i, one in enumerate(chosen, 1) if one != chosen[0]), None)
        if other is not None:
            raise ValueError(
                f"at= goes with one rule for all copies, and that of copy {other} differs from the first's; give all the same, "
                "leave at= out, or train those one by one"
            )
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
        dimensions = {id(p): dimension_of(self.model, name) for name, p in self.model.named_parameters()}
        tune(optimizer, dimensions, self.copies, rates, weight_decay)


def _over_copies(tensor: Tensor, copies: int, dimension: int = 0) -> Sequence[Tensor]:
    """Each copy's share of a tensor in which they lie side by side; numbers belong to all."""
    return [tensor] * copies if tensor.dim() == 0 else tensor.chunk(copies, dimension)


def catch_up(learner: Learner, other: Learner, width: Callable[[int], int]) -> None:
    """Bring `learner` to where `other` is, of a network whose every activity is `width` of the other's units wide."""

    def alike(shape: torch.Size) -> torch.Size:
        return torch.Size([width(shape[0]), *shape[1:]])

    silence_like(learner, other)
    learner.adapted = other.adapted
    learner._features = {
        tuple(map(alike, key)): {name: alike(shape) for name, shape in met.items()}
        for key, met in other._features.items()
    }


def silence_like(learner: Learner, other: Learner) -> None:
    """Drop the feedback that `other`, of a network of the same structure, has found to be without use."""
    for name, synapse in other.synapses.items():
        mine = learner.synapses[name]
        if mine.sends_back and not (synapse.sends_back or synapse.pathway.wired):
            learner._silence(mine)


def _parameters(model: nn.Module) -> Iterator[tuple[str, torch.Size, bool]]:
    """Name and shape of every parameter, in the order of `named_parameters`, and whether it is feedback that was dropped."""
    met: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            name = f"{path}.{leaf}" if path else leaf
            if parameter is not None and parameter not in met:
                met.add(parameter)
                yield name, parameter.shape, False
            elif parameter is None and isinstance(module, Synapse) and leaf in module.plasticity.names:
                yield name, module.weight.shape, True


def put(target: Tensor, shares: Sequence[Tensor], dimension: int) -> None:
    """Fill an entry of the copies' state with that of each; numbers are the first's."""
    with torch.no_grad():
        target.copy_(shares[0] if target.dim() == 0 else torch.cat(list(shares), dimension))


def attach_like(
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
        at=list(learner.blocks) or None,
        generator=generator,
        output=learner._wiring.output,
        connectivity=dict(learner.connectivity),
    )


def dimension_of(model: nn.Module, name: str) -> int:
    """In which dimension of an entry of the state dict copies lie: direct feedback is [outputs, n features], the rest [n *]."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return int(leaf in ("feedback", "feedback_mask") and not (isinstance(owner, Synapse) and not owner.pathway.wired))
