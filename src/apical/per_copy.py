"""Numbers of a rule and streams of random numbers of which copies side by side have one each (see `apical.replicate`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

PER_COPY = {"per_copy": True}
"""Metadata of a hyperparameter's field, where copies side by side may have different values."""

_COPIES = "_apical_copies"


def mark(model: nn.Module, copies: int) -> None:
    """Note in `model` how many networks lie side by side in it."""
    vars(model)[_COPIES] = copies


def copies_in(model: nn.Module) -> int:
    """Number of networks that lie side by side in `model`; 1 if none has noted it."""
    return getattr(model, _COPIES, 1)


class Streams(torch.Generator):
    """A generator that carries one more per copy (`own`), so that each copy draws the numbers it would draw by itself.

    Draws on the object itself are shared by all copies.

    >>> both = Streams([torch.Generator().manual_seed(seed) for seed in (1, 2)])
    >>> alone = torch.Generator().manual_seed(2)
    >>> bool(torch.rand((), generator=both.own[1]) == torch.rand((), generator=alone))
    True
    """

    own: tuple[torch.Generator, ...]

    @override
    def __new__(cls, own: Sequence[torch.Generator]) -> Streams:
        new: Any = super().__new__  # Takes the device, which PyTorch's stub does not know.
        return new(cls, own[0].device)

    def __init__(self, own: Sequence[torch.Generator]) -> None:
        self.own = tuple(own)

    def get_state(self) -> Tensor:
        """States of its own and of all copies' generators [1 + copies, bytes]."""
        return torch.stack([super().get_state(), *(one.get_state() for one in self.own)])

    def set_state(self, new_state: Tensor) -> None:
        """Put all generators where they were when `get_state` gave `new_state`.

        Raises:
            ValueError: if it is the state of another number of generators.
        """
        if new_state.dim() != 2 or len(new_state) != 1 + len(self.own):
            raise ValueError(
                f"not the state of {len(self.own)} copies' generators: it has shape {list(new_state.shape)}"
            )
        # Clones, because PyTorch takes no views of states.
        super().set_state(new_state[0].clone())
        for one, state in zip(self.own, new_state[1:], strict=True):
            one.set_state(state.clone())


def generator_from(state: Tensor, device: torch.device | str) -> torch.Generator:
    """A generator that goes on from a `state` that `get_state` gave: `Streams` for one of `Streams`, else a plain one."""
    made = torch.Generator(device) if state.dim() == 1 else Streams([torch.Generator(device) for _ in state[1:]])
    made.set_state(state)
    return made


def streams(generator: torch.Generator, copies: int) -> torch.Generator:
    """`generator` itself for one copy, and `Streams` seeded from it for several."""
    if copies == 1 or isinstance(generator, Streams):
        return generator
    device = generator.device
    seeds = [int(torch.randint(2**62, (), generator=generator, device=device)) for _ in range(1 + copies)]
    made = Streams([torch.Generator(device).manual_seed(seed) for seed in seeds[1:]])
    made.manual_seed(seeds[0])
    return made


class PerCopy(tuple):
    """Values of a hyperparameter, one for each copy, and the dimension `dim` of feedback in which the copies lie."""

    dim: int

    @override
    def __new__(cls, values: Iterable[Any], dim: int = 0) -> PerCopy:
        made = super().__new__(cls, values)
        made.dim = dim
        return made


def spread(value: Any, like: Tensor) -> Any:
    """A hyperparameter as a factor of `like`: one number as it is, one for each copy as a tensor that broadcasts.

    >>> spread(PerCopy([1.0, 2.0]), torch.zeros(4, 3)).flatten()
    tensor([1., 1., 2., 2.])
    """
    if not isinstance(value, PerCopy):
        return value
    numbers = torch.tensor(tuple(value), dtype=like.dtype, device=like.device)
    share = like.shape[value.dim] // len(value)
    return numbers.repeat_interleave(share).view([-1 if d == value.dim else 1 for d in range(like.dim())])
