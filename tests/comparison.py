"""Whether two learners, two updates or one model before and after are equal; what differs is named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def equal(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], rtol: float = 0.0, atol: float | None = None
) -> None:
    """The same names with the same tensors: to the bit, or to `rtol` and `atol` (by default as large)."""
    assert mine.keys() == theirs.keys(), f"not in both: {mine.keys() ^ theirs.keys()}"
    atol = rtol if atol is None else atol
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def close(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> None:
    """The same names with tensors whose difference is short beside them."""
    assert mine.keys() == theirs.keys(), f"not in both: {mine.keys() ^ theirs.keys()}"
    for name, tensor in theirs.items():
        assert float((mine[name] - tensor).norm()) <= tolerance * float(tensor.norm()), name


def anatomy(model: nn.Module) -> dict:
    """All of a model that attach could touch: classes, attributes, hooks, tensors by identity and value, modes."""
    seen = {}
    for name, module in model.named_modules():
        state = {}
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                state[key] = {k: _tensor(v) for k, v in value.items()}
            else:
                state[key] = _entries(value)
        seen[name] = (type(module), state)
    return seen


def _entries(value: object) -> object:
    return dict(value) if isinstance(value, dict) else set(value) if isinstance(value, set) else value


def _tensor(value: Tensor | None) -> tuple:
    if value is None or nn.parameter.is_lazy(value):
        return id(value), None, None
    return id(value), value.requires_grad, value.detach().clone()


def untouched(before: dict, after: dict, values: bool = True) -> None:
    """Two anatomies of one model are the same; `values`: those of its tensors as well."""
    assert before.keys() == after.keys()
    for name, (kind, state) in before.items():
        other_kind, other = after[name]
        assert other_kind is kind, name
        assert state.keys() == other.keys(), f"{name}: attributes {state.keys() ^ other.keys()}"
        for key, value in state.items():
            if key not in ("_parameters", "_buffers"):
                assert other[key] is value or other[key] == value, (name, key)
                continue
            assert list(value) == list(other[key]), (name, key)
            for k, (identity, learns, tensor) in value.items():
                assert other[key][k][:2] == (identity, learns), (name, k)
                assert not values or tensor is None or torch.equal(tensor, other[key][k][2]), (name, k)
