"""Comparison of copies side by side with single networks, made on stand-ins: the networks themselves stay untouched."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from apical.nested import over_tensors, tensors
from apical.phases.layout import SideBySide
from apical.replicas.layers import widen

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class AloneError(Exception):
    """The network fails on the batch by itself, whatever copies do."""


@torch.no_grad()
def check(
    model: nn.Module,
    layout: SideBySide,
    singles: Sequence[nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> bool:
    """True if copies in `model` compute what the single networks do, seen on one batch [n, N, *]; False if it shows nothing.

    In eval mode, and where the output is not random then, in training mode too, with dropout off. The stand-ins have no rule and
    no hooks. Weights and inputs differ from copy to copy, also where the copies' own are equal or zero, which would hide that
    they mix.

    Raises:
        ValueError: if they compute something else.
        AloneError: if a single network fails.
    """
    n = layout.copies
    args, kwargs = over_tensors((tuple(args), dict(kwargs)), lambda x: _unlike(x, n))
    devices = {tensor.device for tensor in (*model.parameters(), *tensors(args)) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        shows = _compare(model, layout, singles, args, kwargs, training=False)
        if shows:
            # What fails or is random in training alone, as normalization of one row, can't be told from copies that mix.
            with suppress(AloneError):
                _compare(model, layout, singles, args, kwargs, training=True)
        return shows


def _compare(
    model: nn.Module,
    layout: SideBySide,
    singles: Sequence[nn.Module],
    args: Any,
    kwargs: Mapping[str, Any],
    *,
    training: bool,
) -> bool:
    n = layout.copies
    together = _moded(copy.deepcopy(singles[0]), training)
    widen(together, n)
    _vary(together, model)
    # [n, *] for every entry; numbers belong to all.
    state = over_tensors(dict(together.state_dict()), lambda x: x.unflatten(0, (n, -1)) if x.dim() else x.expand(n))
    alone = [
        _pass(_moded(copy.deepcopy(single), training), *over_tensors((state, args, kwargs), lambda x, i=index: x[i]))
        for index, single in enumerate(singles)
    ]
    try:
        theirs = [tensors(output()) for output in alone]
    except Exception as error:
        raise AloneError from error
    ours = tensors(_named(together, layout, args, kwargs))
    if all(_alike([mine[index] for mine in ours], its) for index, its in enumerate(theirs)):
        return any(bool(output.isfinite().any()) for output in theirs[0])
    if not _alike(tensors(alone[0](_nudged)), theirs[0]):
        if not training:
            warnings.warn(
                "the network's output is random even in eval mode, or magnifies rounding beyond measure, so it can't be seen "
                "whether copies compute what it computes alone; they do if no operation outside its layers mixes channels",
                stacklevel=4,
            )
        return True
    raise ValueError(
        f"the copies do not compute what the network computes alone{' in training mode' if training else ''}: its forward mixes "
        "channels outside its layers (cat, chunk, or a mean, norm or softmax over dimension 1, a fixed view), or the networks "
        "differ in more than weights; train copies one by one"
    )


def _moded(network: nn.Module, training: bool) -> nn.Module:
    network.train(training)
    for module in network.modules():
        if isinstance(module, _DROPOUT):
            module.eval()
    return network


def _unlike(x: Tensor, copies: int) -> Tensor:
    """Inputs [n, N, *] that differ from copy to copy, of the same signs."""
    if not x.is_floating_point():
        return x.clone()
    factors = torch.linspace(1, 0.5, copies, dtype=x.dtype, device=x.device)
    return (x if x.any() else torch.ones_like(x)) * factors.view(-1, *[1] * (x.dim() - 1))


def _vary(together: nn.Module, model: nn.Module) -> None:
    """Give copies weights that differ, where and of what type those of `model` are."""
    own = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)  # A change from outside would change the caller's random state.
    for name, parameter in together.named_parameters():
        parameter.requires_grad_(False)  # Autocast keeps casts of those that are learned.
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() < 2:
            parameter.add_(noise, alpha=0.1)
        else:
            # As large as before, so that deep networks magnify rounding no more than they do.
            scale = float(parameter.square().mean().sqrt()) or 1 / math.sqrt(parameter[0].numel())
            parameter.add_(noise, alpha=scale).mul_(0.5**0.5)
        parameter.data = parameter.data.to(own[name])
    buffers = dict(model.named_buffers())
    for name, buffer in together.named_buffers():
        buffer.data = buffer.data.to(buffers[name])


def _pass(single: nn.Module, state: Mapping[str, Any], args: Any, kwargs: Any) -> Callable[..., Any]:
    """A pass of `single` with the weights of `state`; on inputs that are changed, if asked."""
    single.load_state_dict(state, assign=True)

    def output(change: Callable[[Tensor], Tensor] = Tensor.clone) -> Any:
        # Never the given memory, which layers may change in place.
        given, named = over_tensors((args, kwargs), change)
        return single(*given, **named)

    return output


def _nudged(x: Tensor) -> Tensor:
    """Inputs that differ by not much more than rounding."""
    return x * (1 + 4 * torch.finfo(x.dtype).eps) if x.is_floating_point() else x.clone()


def _named(together: nn.Module, layout: SideBySide, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What copies compute; an error inside one of their layers names it."""
    entered: list[tuple[str, nn.Module]] = []
    for name, module in together.named_modules():
        module.register_forward_pre_hook(lambda module, _, name=name: entered.append((name, module)))
        module.register_forward_hook(lambda *_: entered.pop() and None)
    try:
        return layout.apart(together(*layout.fold(args), **layout.fold(kwargs)))
    except Exception as error:
        if not entered:
            raise
        name, module = entered[-1]
        where = f"'{name}' ({module})" if name else "the forward"
        raise ValueError(
            f"{where} fails on copies of a network that passes alone ({type(error).__name__}: {error}). They lie side by side "
            "in dimension 1: a Linear over another one (of tokens [N, T, C], of positions after Flatten(2)), and a forward that "
            "counts on a number of channels, can't have them; train copies one by one"
        ) from error


def _alike(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(_close, ours, theirs))


def _close(mine: Tensor, its: Tensor) -> bool:
    if mine.shape != its.shape:
        return False
    if not its.is_floating_point():
        return True  # Whole numbers that are made of outputs may jump by rounding.
    kind = its.device.type
    coarse = its.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(kind)
    tolerance = 5e-2 if coarse else 4e-3 if kind == "cuda" else 1e-3  # TensorFloat-32 may be at work in convolutions.
    finite = its[its.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(mine, its, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
