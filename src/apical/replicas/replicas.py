"""Independent copies of a network in one module: copies lie side by side in the channels of every layer (see `replicate`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.attaching.attach import Attachable, ExampleInput, attach, attached, learner_of
from apical.attaching.by_module import Rules
from apical.learner import Learner
from apical.nested import arguments, over_tensors, tensors
from apical.per_copy import Streams, generator_from
from apical.phases.layout import SideBySide
from apical.replicas.equivalence import AloneError, check
from apical.replicas.optimizers import PerCopyRates
from apical.replicas.rules import merged_by_layer
from apical.replicas.states import (
    OptimizerState,
    join_optimizer_states,
    join_states,
    split_optimizer_state,
    split_states,
)
from apical.replicas.transfer import attach_like, catch_up
from apical.synapses.registry import synapse_type


@dataclass
class _Unregistered:
    """A module that is kept by another without being part of it: it has no parameters to train."""

    module: nn.Module


class Replicas(Attachable):
    """n copies of a network that are computed together and have nothing in common.

    One pass of n narrow networks costs less than n passes. Made by `replicate`. Call it with the copies' batches, x [n, N, *]; it
    returns what the copies return, [n, N, *].

    Attributes:
        model: the network that holds all copies, with the names of the single one.
        copies: n.
        compared: whether copies have been seen to compute what they do alone. The first batch that passes shows it.

    >>> import apical
    >>> replicas = apical.replicate(nn.Linear(4, 2), 3)
    >>> replicas(torch.ones(3, 8, 4)).shape
    torch.Size([3, 8, 2])
    >>> [one.weight.shape for one in replicas.split()]
    [torch.Size([2, 4]), torch.Size([2, 4]), torch.Size([2, 4])]
    """

    compared: bool = False

    def __init__(self, model: nn.Module, copies: int, single: nn.Module) -> None:
        super().__init__()
        self.model, self.copies = model, copies
        self._layout = SideBySide(copies)
        self._single = _Unregistered(single)
        self._example: ExampleInput | None = None
        self._rules: Sequence[Rules] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Every copy's output for its own batch: x [n, N, *] -> [n, N, *], for every tensor given and returned.

        Raises:
            ValueError: at the first batch, if copies do not compute what the single network does.
        """
        folded = self.fold(args), self.fold(kwargs)
        # Code that is compiled or transformed by torch.func can't branch on values.
        if not (torch.compiler.is_compiling() or self.compared or torch._C._are_functorch_transforms_active()):
            self.compare(args, kwargs)
        return self._layout.apart(self.model(*folded[0], **folded[1]))

    def compare(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise a ValueError if copies do not compute what the single network does; once, by the first batch that can tell."""
        given = tensors((args, kwargs))
        if self.compared or self.copies == 1 or any(x.is_meta or not x.numel() for x in given):
            return
        # What fails for a network alone is an error of the batch, which the pass itself tells.
        with suppress(AloneError):
            self.compared = check(self.model, self._layout, [self._single.module] * self.copies, args, kwargs)

    def fold(self, inputs: Any) -> Any:
        """Batches [n, N, *] as `model` takes them: [N, n C, *]; for a tensor, or every tensor of a sequence or dict."""
        return self._layout.fold(inputs)

    @property
    @override
    def attached_network(self) -> nn.Module:
        return self.model

    @override
    def attach_inside(
        self, rule, *, example_input: Any = None, at: Sequence[str] | None = None, generator: Any = None, **options: Any
    ) -> Learner:
        shown = None if example_input is None else self.fold(example_input)
        rules, own = self.share_out(rule, at)
        if example_input is not None:
            self.compare(*arguments(example_input))
        source = self._source(generator)
        learner = attach(self.model, rules, example_input=shown, at=at, generator=source, **options)
        learner.layout = self._layout
        self._example, self._rules = example_input, own
        return learner

    def _source(self, given: Any) -> torch.Generator | None:
        """The generator to attach with: `given` itself, or one made of a list with one for each copy."""
        if not isinstance(given, list | tuple):
            return given
        if len(given) != self.copies or not all(isinstance(one, torch.Generator) for one in given):
            raise ValueError(
                f"generator must be one torch.Generator, or {self.copies} of them for {self.copies} copies; got {given!r}"
            )
        return Streams(given) if self.copies > 1 else given[0]

    def share_out(
        self, rules: Rules | Sequence[Rules], at: Sequence[str] | None = None
    ) -> tuple[Rules, Sequence[Rules]]:
        """The rules of `model` with which each copy learns by its own, and these; given one for all, or one for each."""
        if isinstance(rules, Mapping | str) or not isinstance(rules, Sequence):
            return rules, [rules] * self.copies
        if len(rules) != self.copies:
            raise ValueError(f"rule must be one, or a list of {self.copies} for {self.copies} copies; got {len(rules)}")
        layers = [name for name, module in self.model.named_modules() if synapse_type(module) is not None]
        return merged_by_layer(rules, layers, blocks=at is not None), list(rules)

    def split(self) -> list[nn.Module]:
        """The copies as networks of their own, with weights, statistics and, where attached, rule, feedback and generator."""
        models = [copy.deepcopy(self._single.module) for _ in range(self.copies)]
        learner = attached(self)
        if learner is not None:
            shown = None if self._example is None else over_tensors(self._example, lambda x: x[0])
            rules = self._rules or [dict(learner.rules)] * self.copies
            for model, rule, own in zip(models, rules, self.generators, strict=True):
                drawn = generator_from(own.get_state(), own.device)
                catch_up(attach_like(learner, model, rule, shown, drawn), learner, lambda units: units // self.copies)
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
        return split_states(self.model, self.copies)

    def load_states(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take what `states` gave, or the state dicts of single networks, one for each copy.

        Raises:
            ValueError: if one of them is of another structure.
        """
        join_states(self.model, self.copies, states)

    def optimizer_states(self, state: OptimizerState) -> list[dict[int, dict[str, Any]]]:
        """Each copy's share of an optimizer's ``state_dict()["state"]``, as an optimizer of the single network would have it.

        Numbered as the given one: it counts feedback that was dropped in the first pass if the optimizer was made before.
        """
        return split_optimizer_state(self.model, self.copies, state)

    def optimizer_state(self, states: Sequence[OptimizerState]) -> dict[int, dict[str, Any]]:
        """What `optimizer_states` was given, from what it gave."""
        return join_optimizer_states(self.model, self.copies, states)

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
        PerCopyRates(self.model, self.copies, rates, weight_decay).watch(optimizer)
