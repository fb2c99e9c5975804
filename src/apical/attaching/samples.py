"""Whether the samples of a batch keep to themselves, and lie in the first dimension, as direct signals take for granted.

The error of a sample's output is carried to that sample's activity. Where that activity moves the outputs of others too, or
samples lie in the second dimension, it would teach with what belongs to others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from apical.nested import Which, arguments, input_of, pick
from apical.phases.conditions import statistics_of
from apical.phases.isolation import learning, preserved
from apical.rules import Rule


def check_samples(
    model: nn.Module, rules: Mapping[str, Rule], example_input: Any, at: Sequence[str] | None, output: Which
) -> None:
    """Refuse or warn where direct signals would carry the error of one sample to another.

    Does output i move when the activity of sample j does? One pass and one backpropagation of an output tell.

    Args:
        model: not attached yet. rules: name of a layer -> its rule. example_input: a batch as `attach` takes it.
        at: names of blocks at whose outputs signals enter. output: which tensor the loss is made of.

    Raises:
        ValueError: if positions of the second dimension keep to themselves, so that samples may lie there.
    """
    direct = [name for name, rule in rules.items() if rule.direct]
    if not direct:
        return
    found = _reach(model, direct, example_input, at, output)
    if found is None:
        return
    name, rows, columns = rules[direct[0]].name, *found
    if columns is False:
        raise ValueError(
            f"rule '{name}' carries the error of a sample to that sample's activity, with the batch in the first dimension; but "
            "here an output moves with activity at its own place in the second dimension alone, as if samples lay there, so "
            "errors would teach with activity that has no part in them:\n"
            "- if the batch lies in the second dimension, bring it to the first one: x.transpose(0, 1)\n"
            "- if positions of a sample are each on their own, make samples of them: x.flatten(0, 1)\n"
            "- or use a layer-wise rule such as 'fa'"
        )
    if rows:
        warnings.warn(
            "outputs of some samples move with activity of other samples (nodes of a graph, attention over the batch), and rule "
            f"'{name}' carries the error of a sample to that sample alone, so that part of what activity does is not taught; a "
            "layer-wise rule such as 'fa' carries all of it",
            stacklevel=3,
        )


def _reach(
    model: nn.Module, names: list[str], example_input: Any, at: Sequence[str] | None, output: Which
) -> tuple[bool, bool | None] | None:
    """Whether an output moves with activity in other rows, and in other columns (None: there are none to tell).

    None if the pass can't tell: a single sample, or no way from activity to outputs.
    """
    taps: list[Tensor] = []

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        taps.append(input_of(args, kwargs))

    def see_block(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        taps.append(result)

    modules = dict(model.named_modules())
    if at is None:
        handles = [modules[name].register_forward_pre_hook(see, with_kwargs=True) for name in names]
    else:
        handles = [modules[name].register_forward_hook(see_block) for name in at]
    handles += [
        module.register_forward_hook(_hold)
        for module in modules.values()
        if isinstance(module, _BatchNorm) and module.running_mean is None
    ]
    try:
        with preserved(model, also=example_input), learning(model, True), torch.enable_grad():
            model.eval()
            args, kwargs = arguments(example_input)
            y = pick(torch.func.functional_call(model, _moved(model), tuple(args), dict(kwargs)), output)
            taps = [a for a in taps if isinstance(a, Tensor) and a.requires_grad and len(a) == len(y) > 1]
            if not taps or not y.requires_grad or y.is_meta:
                return None
            wide = [a.dim() > 2 and y.dim() > 1 and a.shape[1] == y.shape[1] > 1 for a in taps]
            row, column = len(y) // 2, y.shape[1] // 2 if any(wide) else None
            weights = torch.zeros_like(y)
            chosen = weights[row] if column is None else weights[row, column]
            chosen.copy_(_noise(chosen))
            gradients = torch.autograd.grad(y, taps, weights, allow_unused=True)
    # What can't be computed so, as functions without a derivative, is left to the training itself.
    except Exception:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return _judged(gradients, wide, row, column)


def _judged(
    gradients: Sequence[Tensor | None], wide: Sequence[bool], row: int, column: int | None
) -> tuple[bool, bool | None]:
    rows, columns = False, None
    for gradient, has_columns in zip(gradients, wide, strict=True):
        if gradient is None:
            continue
        moves = (gradient != 0) & gradient.isfinite()
        by_row = moves.flatten(1).any(1)
        rows = rows or bool(by_row.sum() > by_row[row])
        if has_columns and column is not None and bool(moves[row, column].any()):
            by_column = moves.transpose(0, 1).flatten(1).any(1)
            columns = bool(columns) or bool(by_column.sum() > by_column[column])
    return rows, columns


def _noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)


def _moved(model: nn.Module) -> dict[str, Tensor]:
    """The parameters, moved a little at random: branches that start from zero count as well."""
    named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    return {
        name: (p.detach() + 0.1 * (p.detach().abs().mean() + 0.1) * _noise(p)).requires_grad_()
        for name, p in named.items()
    }


def _hold(module: _BatchNorm, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Hook of a batch normalization without running statistics: the batch's own, as constants."""
    x = args[0]
    found = statistics_of(x, output)
    mean, variance = found.mean.to(x.dtype), found.squared(module.eps).to(x.dtype)
    return F.batch_norm(x, mean, variance, module.weight, module.bias, False, 0.0, module.eps)
