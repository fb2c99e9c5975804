"""State of copies side by side, taken apart into that of single networks and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from apical.pathways import FromOutput
from apical.synapses.storage import kept, names_kept
from apical.synapses.synapse import Synapse

OptimizerState = Mapping[int, Mapping[str, Any]]
"""An optimizer's ``state_dict()["state"]``: number of the parameter -> name -> value."""


def dimension_of(model: nn.Module, name: str) -> int:
    """Dimension of a state dict's entry in which copies lie: direct feedback is [outputs, n features], the rest [n out, *]."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return int(
        leaf in ("feedback", "feedback_mask")
        and not (isinstance(owner, Synapse) and not isinstance(owner.pathway, FromOutput))
    )


@torch.no_grad()
def put(target: Tensor, shares: Sequence[Tensor], dimension: int) -> None:
    """Fill an entry of the copies' state with that of each; numbers are the first's."""
    target.copy_(shares[0] if target.dim() == 0 else torch.cat(list(shares), dimension))


def split_states(model: nn.Module, copies: int) -> list[dict[str, Tensor]]:
    """Each copy's state dict (see `Replicas.states`)."""
    shares = {
        name: tensor.chunk(copies, dimension_of(model, name)) if tensor.dim() else [tensor] * copies
        for name, tensor in model.state_dict().items()
    }
    return [{name: own[index] for name, own in shares.items()} for index in range(copies)]


def join_states(model: nn.Module, copies: int, singles: Sequence[Mapping[str, Tensor]]) -> None:
    """Take the state dicts of single networks, one for each copy (see `Replicas.load_states`)."""
    for number, (own, state) in enumerate(zip(split_states(model, copies), singles, strict=True), 1):
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise ValueError(f"state {number} is of a network built otherwise than these copies")
    for name, tensor in model.state_dict().items():
        put(tensor, [state[name] for state in singles], dimension_of(model, name))


def split_optimizer_state(model: nn.Module, copies: int, state: OptimizerState) -> list[dict[int, dict[str, Any]]]:
    """Each copy's share of an optimizer's state (see `Replicas.optimizer_states`)."""
    shares: list[dict[int, dict[str, Any]]] = [{} for _ in range(copies)]
    for key, place in _places(model, state, 1).items():
        for name, value in state.get(key, {}).items():
            whole = isinstance(value, Tensor) and value.shape == place.shape
            own = value.chunk(copies, place.dimension) if whole else [value] * copies
            for share, part in zip(shares, own, strict=True):
                share.setdefault(key, {})[name] = part
    return shares


def join_optimizer_states(
    model: nn.Module, copies: int, singles: Sequence[OptimizerState]
) -> dict[int, dict[str, Any]]:
    """The state of one optimizer for all copies, from those of single networks (see `Replicas.optimizer_state`)."""
    found: dict[int, dict[str, Any]] = {}
    for key, place in _places(model, singles[0], copies).items():
        for name, value in singles[0].get(key, {}).items():
            own = [state[key][name] for state in singles]
            # As many entries as a copy's share of the parameter: not a number that belongs to all.
            whole = isinstance(value, Tensor) and value.dim() and value.numel() * copies == place.shape.numel()
            found.setdefault(key, {})[name] = torch.cat(own, place.dimension) if whole else value
    return found


class _Place(NamedTuple):
    """A parameter's shape, and the dimension of it in which copies lie."""

    shape: torch.Size
    dimension: int

    def share(self, parts: int) -> tuple[int, ...]:
        """Shape of one of so many parts."""
        d = self.dimension
        return (*self.shape[:d], self.shape[d] // parts, *self.shape[d + 1 :])


def _places(model: nn.Module, state: OptimizerState, parts: int) -> dict[int, _Place]:
    """Every parameter's place, by its number in an optimizer of them all.

    An optimizer of a network that was attached without an example counts feedback that is out of use, one of a network attached
    with an example does not. The shapes in `state`, whose tensors are one of `parts` of a parameter, tell which of them it is of.
    """
    met = [(_Place(shape, dimension_of(model, name)), dropped) for name, shape, dropped in _parameters(model)]
    made_before = dict(enumerate(place for place, _ in met))
    made_after = dict(enumerate(place for place, dropped in met if not dropped))

    def fitting(places: dict[int, _Place]) -> int:
        return sum(
            key in places and any(isinstance(x, Tensor) and x.shape == places[key].share(parts) for x in own.values())
            for key, own in state.items()
        )

    return max((made_before, made_after), key=fitting)


def _parameters(model: nn.Module) -> Iterator[tuple[str, torch.Size, bool]]:
    """Name and shape of every parameter, in the order of `named_parameters`, and whether it is feedback that was dropped."""
    met: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            name = f"{path}.{leaf}" if path else leaf
            dropped = leaf in names_kept(module) and kept(module, leaf) is None
            if parameter is not None and parameter not in met:
                met.add(parameter)
                yield name, parameter.shape, dropped
            elif parameter is None and dropped and isinstance(module, Synapse):
                yield name, module.weight.shape, True
