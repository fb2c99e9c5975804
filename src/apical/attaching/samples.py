"""What a row of a batch is to direct signals: what its feedback is made for, and whether samples keep to themselves.

The error of a sample's output is carried to that sample's activity. Where that activity moves the outputs of others too, or
samples lie in the second dimension, it would teach with what belongs to others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from apical.nested import Which, arguments, input_of, pick
from apical.pathways import Direct
from apical.pathways.factored.form import Form
from apical.per_copy import copies_in
from apical.phases.conditions import statistics_of
from apical.phases.isolation import learning, preserved
from apical.plasticity.regression import free_memory
from apical.rules import Rule
from apical.synapses.registry import synapse_type
from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.attaching.dry_run import Shown

SHARE = 0.25
"""Of the memory that is free, what direct feedback may take: activities and the rest of a step need some as well."""


def check_samples(
    model: nn.Module,
    rules: Mapping[str, Rule],
    example_input: Any,
    at: Sequence[str] | None,
    output: Which,
    *,
    positions: bool,
) -> None:
    """Refuse or warn where direct signals would carry the error of one sample to another.

    Does output i move when the activity of sample j does? One pass and one backpropagation of an output tell.

    Args:
        model: not attached yet. rules: name of a layer -> its rule. example_input: a batch as `attach` takes it.
        at: names of blocks at whose outputs signals enter. output: which tensor the loss is made of.
        positions: whether each position of the second dimension has an error of its own.

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
    if columns is False and not positions:
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


def forms_of(model: nn.Module, rules: Mapping[str, Rule], shown: Shown, at: Sequence[str] | None) -> dict[str, Form]:
    """Name of a place where direct signals enter -> how its feedback is kept, where that is not in full.

    Args:
        model: to be attached. rules: name of a layer -> its rule. shown: by a dry run. at: names of blocks where signals enter.

    Raises:
        ValueError: for an option that an activity can't have; and, before any is made, for feedback that takes more than `SHARE`
            of the memory that is free.
    """
    if at is None:
        taps = {c.name: (c.input, rules[c.name]) for c in reversed(shown.calls) if c.signal}
    else:
        taps = {name: (shown.blocks[name], next(iter(rules.values()))) for name in at}
    found = {}
    for name, (features, rule) in reversed(taps.items()):
        if isinstance(rule.pathway, Direct):
            alike = {other: shape for other, (shape, its) in taps.items() if its.pathway == rule.pathway}
            found[name] = _form(model, name, features, rule, shown, _lead(model, rule, shown, alike))
    _check_memory(model, found, {name: rule for name, (_, rule) in taps.items()})
    return {name: form for name, form in found.items() if not form.plain}


def _lead(model: nn.Module, rule: Rule, shown: Shown, taps: Mapping[str, torch.Size]) -> int:
    """How many dimensions count as the batch at the taps of one pathway."""
    assert shown.output is not None
    assert isinstance(rule.pathway, Direct)
    asked, positions = rule.pathway.per_position, shown.output[:-1]
    if asked is False or (asked is None and not positions):
        return 1
    if not positions:
        raise ValueError(
            f"per_position=True, but the model's output has shape [N, {', '.join(map(str, shown.output))}], one error a sample; "
            "leave it out"
        )
    others = [
        name
        for name, shape in taps.items()
        if shape[: len(positions)] != positions or len(shape) == len(positions) or not _channels_last(model, name)
    ]
    if others and asked:
        shape = ", ".join(map(str, taps[others[-1]]))
        raise ValueError(
            f"per_position=True, but activity at '{others[-1]}' has shape [N, {shape}], which does not share the positions of "
            f"the output [N, {', '.join(map(str, shown.output))}] as [N, {', '.join(map(str, positions))}, units]; let signals "
            f"enter elsewhere with at=[...], or give it a layer-wise rule: {{'': ..., '{others[-1]}': 'fa'}}"
        )
    return 1 if others else 1 + len(positions)


def _channels_last(model: nn.Module, name: str) -> bool:
    """Whether the last dimension of the activity at a layer, or of the output of a block, counts channels."""
    kinds = [type(m) if isinstance(m, Synapse) else synapse_type(m) for m in model.get_submodule(name).modules()]
    return all(kind.unit_dim == -1 for kind in kinds if kind is not None)


def _form(model: nn.Module, name: str, features: torch.Size, rule: Rule, shown: Shown, lead: int) -> Form:
    pathway, output, copies = rule.pathway, shown.output, copies_in(model)
    assert isinstance(pathway, Direct)
    assert output is not None
    features, outputs = features[lead - 1 :], output[lead - 1 :].numel() // copies
    channel = len(features) - 1 if _channels_last(model, name) else 0
    rest = [d for d in range(len(features)) if d != channel]
    core = list(features)
    if rest and pathway.positions in ("same", (1, 1)):
        core = [features[channel]]
    elif rest and pathway.positions != "all":
        if len(rest) != 2:
            raise ValueError(
                f"positions={pathway.positions!r} is a grid on maps of two dimensions, but activity at '{name}' has shape "
                f"[N, {', '.join(map(str, features))}]; use positions='same'"
            )
        for d, size in zip(rest, pathway.positions, strict=True):
            core[d] = min(int(size), features[d])
    made = pathway.shared or pathway.seeded
    return Form(
        features,
        outputs,
        channel,
        torch.Size(core),
        lead,
        pathway.rank if pathway.rank is not None and pathway.rank < outputs else None,
        pathway.shared,
        pathway.seeded,
        getattr(rule.plasticity, "init", "weights") if made else "weights",
        copies,
    )


def _check_memory(model: nn.Module, forms: Mapping[str, Form], rules: Mapping[str, Rule]) -> None:
    """Raise a ValueError if what is kept of direct feedback takes too much memory."""
    weight = next(model.parameters(), None)
    kept = {name: form.shape.numel() for name, form in forms.items() if not form.made}
    if not kept or weight is None or weight.is_meta:
        return
    size = {name: weight.element_size() * n * (1 + rules[name].trains) for name, n in kept.items()}
    total, free, largest = sum(size.values()), free_memory(weight.device), max(size, key=lambda name: size[name])
    if total > SHARE * free:
        rule, shape = rules[largest].name, list(forms[largest].shape)
        fixed = "" if rules[largest].trains else ", and for fixed feedback shared=True or seeded=True"
        raise ValueError(
            f"rule '{rule}' would keep {_gib(total)} of direct feedback at {len(size)} places (the largest, at '{largest}', "
            f"{shape}: {_gib(size[largest])}), and of {_gib(free)} that are free on {weight.device} it may take {SHARE:.0%}; "
            f"keep less of it: apical.rule('{rule}', positions='same') has one for all positions of a map, positions=(4, 4) a "
            f"few, rank=64 a product{fixed}; or let signals enter at fewer places, with at=[...]"
        )


def _gib(size: int) -> str:
    return f"{size:,} bytes ({size / 2**30:.1f} GiB)"
