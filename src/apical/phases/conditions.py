"""The conditions that a pass is made under: random state, autocast, statistics of batch normalizations, how errors go back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apical.pathways.checkpointing import recomputing
from apical.pathways.layer_wise import LayerWise
from apical.phases.isolation import RandomState
from apical.plasticity.transport import Transport
from apical.synapses.circuit import Connection

if TYPE_CHECKING:
    from apical.learner import Learner


def casts(kind: str) -> torch.dtype | None:
    """What autocast turns values into on devices of `kind`; None where it is off."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def casting(kind: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """While open, autocast on devices of `kind` turns values into dtype, or is off."""
    return torch.autocast(kind, dtype, enabled=dtype is not None) if casts(kind) != dtype else nullcontext()


@dataclass
class Conditions:
    """Under which a pass can be made again: random state, autocast, and statistics of the normalizations that mix samples."""

    random: RandomState
    kind: str
    autocast: torch.dtype | None
    normalized: dict[nn.Module, list[Statistics]] = field(default_factory=dict)
    """What each batch normalization took from the batch, call by call."""

    @classmethod
    def now(cls, devices: list[int], kind: str) -> Conditions:
        """Those at this moment, for a model on devices of `kind`."""
        return cls(RandomState(devices), kind, casts(kind))

    def casting(self) -> AbstractContextManager[Any]:
        """While open, autocast is as it was."""
        return casting(self.kind, self.autocast)

    @contextmanager
    def again(self) -> Iterator[None]:
        """While open, random numbers and autocast are as they were; after it, random numbers go on as before it."""
        with ExitStack() as stack:
            stack.callback(RandomState([device for device, _ in self.random.cuda]).restore)
            self.random.restore()
            stack.enter_context(self.casting())
            yield

    @contextmanager
    def clean_statistics(self) -> Iterator[None]:
        """While open, batch normalizations use the mean and variance that they had in the pass.

        With statistics of a noisy batch, one sample's noise would show in another's loss.
        """
        _find_variances(self.normalized)
        own = {module: vars(module).get("forward") for module in self.normalized}
        for module, statistics in self.normalized.items():
            vars(module)["forward"] = _Normalized(module, statistics)  # type: ignore[arg-type]
        try:
            yield
        finally:
            for module, forward in own.items():
                del vars(module)["forward"]
                if forward is not None:
                    vars(module)["forward"] = forward


@dataclass
class Statistics:
    """Mean [C] of a batch, with its variance [C] or, as autograd keeps it, one over the standard deviation."""

    mean: Tensor
    variance: Tensor | None
    precision: Tensor | None = None

    def squared(self, eps: float) -> Tensor:
        """The variance, which is found now if it is not known yet."""
        if self.variance is None:
            _find([(self, eps)])
        assert self.variance is not None
        return self.variance


def _find_variances(normalized: dict[nn.Module, list[Statistics]]) -> None:
    """Find the variances that are not known yet, all together; only here, since not every phase asks for them."""
    waiting = [(one, module.eps) for module, found in normalized.items() for one in found if one.variance is None]
    if waiting:
        _find(waiting)


def _find(waiting: Sequence[tuple[Statistics, Any]]) -> None:
    """Find variances, given the number that was added to each before the root."""
    variances = torch._foreach_pow([one.precision for one, _ in waiting], -2)  # pyright: ignore
    torch._foreach_sub_(variances, [eps for _, eps in waiting])  # pyright: ignore
    torch._foreach_clamp_min_(variances, 0.0)  # pyright: ignore
    for (one, _), variance in zip(waiting, variances, strict=True):
        one.variance = variance


class _Normalized:
    """A batch normalization's own forward, which takes its statistics, call by call, from a pass before.

    In this thread, and where one of autograd's own computes again for checkpointing; others go on as before.
    """

    def __init__(self, module: _BatchNorm, statistics: list[Statistics]) -> None:
        self.module, self.forward, self.statistics = module, module.forward, iter(statistics)
        self.thread = get_ident()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.thread != get_ident() and not recomputing():
            return self.forward(*args, **kwargs)
        module, found = self.module, next(self.statistics)
        # A subclass may do more than normalize; in eval mode it does that with these in place of the running ones.
        own = {"training": False, "_buffers": {**module._buffers}}
        own["_buffers"].update(running_mean=found.mean, running_var=found.variance)
        if getattr(self.forward, "__self__", None) is module:
            # Of a double, because another thread may be passing through the module.
            double = object.__new__(type(module))
            vars(double).update(vars(module), **own)
            return self.forward.__func__(double, *args, **kwargs)
        before = {name: vars(module)[name] for name in own}
        vars(module).update(own)
        try:
            return self.forward(*args, **kwargs)
        finally:
            vars(module).update(before)


def statistics_of(x: Tensor, output: Tensor) -> Statistics:
    """Of a batch that a normalization has just seen."""
    # Not through hooks: activation checkpointing would compute the block anew to answer.
    autograd = getattr(torch._C, "_autograd", None)
    hooked = getattr(autograd, "_top_saved_tensors_default_hooks", lambda _: True)(False)
    node = None if hooked else output.grad_fn
    mean, deviation = getattr(node, "_saved_result1", None), getattr(node, "_saved_result2", None)
    if mean is not None and deviation is not None and mean.numel() == deviation.numel() == x.shape[1]:
        # Autograd has kept them; computing them again takes longer than the normalization.
        return Statistics(mean.detach(), None, deviation.detach())
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0)
    return Statistics(mean, variance)


_ROLE: dict[str, Any] = {
    "pathway": LayerWise(),
    "plasticity": Transport(),
    "connection": Connection(),
    "whole_pass": None,
    "subspace": None,
    "sends_back": True,
    "native": False,
}
"""Attributes by which a synapse sends its error back through its own weights."""


@contextmanager
def backpropagating(learner: Learner) -> Iterator[None]:
    """While open, the model teaches its synapses by backpropagation through all its weights."""
    # By way of dictionaries: a phase does this every step, and nn.Module's assignment is slow enough to show.
    held = [(vars(s), {name: vars(s)[name] for name in _ROLE if name in vars(s)}) for s in learner.synapses.values()]
    muted = [one.muted for one in learner.passes]
    for one in learner.passes:
        one.muted = get_ident()
    try:
        for own, _ in held:
            own.update(_ROLE)
        yield
    finally:
        for one, before in zip(learner.passes, muted, strict=True):
            one.muted = before
        for own, before in held:
            own.update(before)
            for name in _ROLE.keys() - before.keys():
                del own[name]
