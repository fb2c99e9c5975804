"""What copies side by side may have of their own: streams of random numbers, and a rule's numbers (see `replicate`)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from apical.rules import Rule

PER_COPY = {"per_copy": True}
"""Metadata of a hyperparameter that copies side by side may have different values of."""


PROPORTIONAL: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
)  # fmt: skip
"""Optimizers that treat every entry on its own, with steps proportional to the learning rate."""

_COPIES = "_apical_copies"


def mark(model: nn.Module, copies: int) -> None:
    """Say that so many networks lie side by side in `model`."""
    vars(model)[_COPIES] = copies


def copies_in(model: nn.Module) -> int:
    """How many networks lie side by side in `model`."""
    return getattr(model, _COPIES, 1)


class Streams(torch.Generator):
    """One generator for each copy, in `own`, so that each draws what it would alone; and itself, for whoever draws for all."""

    own: tuple[torch.Generator, ...]

    def __new__(cls, own: Sequence[torch.Generator]) -> Streams:  # noqa: D102
        return super().__new__(cls, own[0].device)  # type: ignore[call-arg]

    def __init__(self, own: Sequence[torch.Generator]) -> None:
        self.own = tuple(own)

    def get_state(self) -> Tensor:
        """States of its own and of all copies' generators [1 + copies, bytes]."""
        return torch.stack([super().get_state(), *(one.get_state() for one in self.own)])

    def set_state(self, new_state: Tensor) -> None:
        """Take what `get_state` gave."""
        if new_state.dim() != 2 or len(new_state) != 1 + len(self.own):
            raise ValueError(
                f"not the state of {len(self.own)} copies' generators: it has shape {list(new_state.shape)}"
            )
        # Clones, because PyTorch takes no views of states.
        super().set_state(new_state[0].clone())
        for one, state in zip(self.own, new_state[1:], strict=True):
            one.set_state(state.clone())


def generator_from(state: Tensor, device: torch.device | str) -> torch.Generator:
    """The generator whose `get_state` gave `state`."""
    made = torch.Generator(device) if state.dim() == 1 else Streams([torch.Generator(device) for _ in state[1:]])
    made.set_state(state)
    return made


def streams(generator: torch.Generator, copies: int) -> torch.Generator:
    """`generator` itself, or for several copies their own ones, seeded from it."""
    if copies == 1 or isinstance(generator, Streams):
        return generator
    device = generator.device
    seeds = [int(torch.randint(2**62, (), generator=generator, device=device)) for _ in range(1 + copies)]
    made = Streams([torch.Generator(device).manual_seed(seed) for seed in seeds[1:]])
    made.manual_seed(seeds[0])
    return made


class PerCopy(tuple):
    """A hyperparameter's values, one for each copy, and the dimension of feedback in which the copies lie."""

    dim: int

    def __new__(cls, values: Iterable[Any], dim: int = 0) -> PerCopy:  # noqa: D102
        made = super().__new__(cls, values)
        made.dim = dim
        return made


def spread(value: Any, like: Tensor) -> Any:
    """A hyperparameter as a factor of `like`: a number as it is; one for each copy as a tensor that broadcasts."""
    if not isinstance(value, PerCopy):
        return value
    numbers = torch.tensor(tuple(value), dtype=like.dtype, device=like.device)
    share = like.shape[value.dim] // len(value)
    return numbers.repeat_interleave(share).view([-1 if d == value.dim else 1 for d in range(like.dim())])


def merged(rules: Sequence[Rule]) -> Rule:
    """One rule for copies that have one each.

    Raises:
        ValueError: if they differ in more than numbers, or in a number that copies have to share.
    """
    first = rules[0]
    if all(rule == first for rule in rules):
        return first
    parts = {}
    for part in ("pathway", "plasticity"):
        own = [getattr(rule, part) for rule in rules]
        other = next((number for number, value in enumerate(own) if type(value) is not type(own[0])), None)
        if other is not None:
            raise ValueError(
                f"copies can't have other rules than the first: copy {other + 1} has '{rules[other].name}', the first "
                f"'{first.name}'; copies may differ in a rule's numbers, not in its kind. Train those one by one"
            )
        parts[part] = _merged(first.name, own, int(first.pathway.wired))
    decays = {rule.weight_decay for rule in rules}
    return dataclasses.replace(
        first,
        **parts,
        name=", ".join(dict.fromkeys(rule.name for rule in rules)),
        # The optimizer's, which has one for all; Replicas.tune gives copies their own.
        weight_decay=first.weight_decay if len(decays) == 1 else 0.0,
    )


def _merged(rule: str, parts: Sequence[Any], dim: int) -> Any:
    result = copy.copy(parts[0])
    fields = dataclasses.fields(result)
    for field in fields:
        values = [getattr(part, field.name) for part in parts]
        if all(value == values[0] for value in values):
            continue
        if not field.metadata.get("per_copy"):
            able = [one.name for one in fields if one.metadata.get("per_copy")]
            raise ValueError(
                f"copies of rule '{rule}' can't have different values of {field.name} ({', '.join(map(repr, values))}); "
                + (f"they may differ in {', '.join(able)}. " if able else "they may differ in none of its values. ")
                + "Train those one by one"
            )
        # Not by its constructor: every value has been checked by the part it comes from.
        object.__setattr__(result, field.name, PerCopy(values, dim))
    return result


def tune(
    optimizer: torch.optim.Optimizer,
    dimensions: Mapping[int, int],
    copies: int,
    rates: Sequence[float] | None,
    weight_decay: Sequence[float] | None,
) -> None:
    """See `Replicas.tune`; `dimensions` says by its id in which dimension of a parameter the copies lie."""
    if type(optimizer) not in PROPORTIONAL:
        raise ValueError(
            f"optimizer must be one of {', '.join(kind.__name__ for kind in PROPORTIONAL)}, whose steps are proportional to "
            f"the learning rate, got {type(optimizer).__name__}"
        )
    for name, numbers in (("rates", rates), ("weight_decay", weight_decay)):
        if numbers is not None and (len(numbers) != copies or not all(0 <= n < float("inf") for n in numbers)):
            raise ValueError(f"{name} must be {copies} numbers of at least 0, one for each copy, got {numbers!r}")
    if weight_decay is not None and any(group.get("weight_decay") for group in optimizer.param_groups):
        raise ValueError(
            "weight_decay of copies takes the place of the optimizer's; make the optimizer with weight_decay=0"
        )
    if any(id(p) not in dimensions for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer holds parameters that are not the copies'; make it of replicas.parameters()")
    before: dict[int, Tensor] = {}

    def own(numbers: Sequence[float], parameter: Tensor) -> Tensor:
        return spread(PerCopy(numbers, dimensions[id(parameter)]), parameter)

    @torch.no_grad()
    def start(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepping.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if rates is not None:
                    before[id(parameter)] = parameter.detach().clone()
                if weight_decay is not None and group.get("decoupled_weight_decay"):
                    parameter.mul_(1 - group["lr"] * own(weight_decay, parameter))
                elif weight_decay is not None:
                    sign = -1 if group.get("maximize") else 1
                    parameter.grad.addcmul_(parameter, own(weight_decay, parameter), value=sign)

    @torch.no_grad()
    def end(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in stepping.param_groups:
            for parameter in group["params"]:
                old = before.pop(id(parameter), None)
                if old is not None and rates is not None:
                    parameter.sub_(old).mul_(own(rates, parameter)).add_(old)

    optimizer.register_step_pre_hook(start)
    optimizer.register_step_post_hook(end)
