"""What a graph was made for: it may be replayed as long as all that is as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from apical.cuda_graphs.seen import Seen


@dataclass(frozen=True, eq=False)
class Standing:
    """The things that a step's kernels take for granted. They are asked for at every replay, so without detours.

    Attributes:
        options: of optimizers, learning rates among them. counts: of their parameters.
        tensors: parameters, buffers and optimizers' state. addresses: where parameters lie.
        modes: classes and modes of modules, which parameters learn, which synapses there are, autocast.
    """

    options: list[Any]
    counts: list[int]
    tensors: list[Any]
    addresses: list[int]
    modes: list[Any]

    @classmethod
    def of(cls, seen: Seen, kind: str) -> Standing:
        """As it is now, on a device of `kind`."""
        groups = [group for optimizer in seen.optimizers for group in optimizer.param_groups]
        stores = [store for module in seen.modules for store in (module._parameters, module._buffers) if store]
        for optimizer in seen.optimizers:
            stores += optimizer.state.values()
        modes: list[Any] = [torch.is_grad_enabled(), torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)]
        modes += map(type, seen.modules)
        modes += [module.training for module in seen.modules]
        modes += [parameter.requires_grad for parameter in seen.parameters]
        for learner in seen.learners:
            modes += learner.synapses.values()
        return cls(
            [value for group in groups for name, value in group.items() if name != "params"],
            [len(group["params"]) for group in groups],
            [value for store in stores for value in store.values()],
            list(map(Tensor.data_ptr, seen.parameters)),
            modes,
        )

    def same_options(self, other: Standing) -> bool:
        """Whether optimizers go by the same numbers, or by what lies in the same place on the device."""
        return self.counts == other.counts and (
            _identical(self.options, other.options)
            or list(map(_plain, self.options)) == list(map(_plain, other.options))
        )

    def same_tensors(self, other: Standing) -> bool:
        """Whether all that lies on the device lies where it lay."""
        return self.addresses == other.addresses and _identical(self.tensors, other.tensors)

    def same(self, other: Standing) -> bool:
        """Whether all is as it was."""
        return self.same_options(other) and self.same_tensors(other) and self.modes == other.modes

    def anew(self, after: Standing, seen: Seen) -> str | None:
        """What a step has made anew or set otherwise, in words; None if nothing, so that a graph can do it again."""
        if not self.same_options(after):
            return (
                "the step changes its optimizer's options itself, as the learning rate: let the scheduler step after it, "
                "outside"
            )
        if self.modes != after.modes:
            return "the step changes modes of modules, or which parameters learn: do that outside"
        if self.same_tensors(after):
            return None
        names = [
            f"'{name}' of {type(module).__name__}"
            for module in seen.modules
            for store in (module._parameters, module._buffers)
            for name in store
        ]
        pairs = zip(names, self.tensors, after.tensors, strict=False)
        what = next((name for name, one, other in pairs if one is not other), "the optimizer's state")
        return f"{what} is made anew in every step, and not changed in place"


def _identical(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _plain(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else value
