"""Seeing how a model is wired: which synapses a signal leaves, and the shapes it meets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from apical.attaching.samples import forms_of
from apical.attaching.uses import Uses, watching
from apical.nested import Which, input_of, pick, run, substitute, tensors
from apical.pathways import Indirect
from apical.pathways.checkpointing import graph_comes_later
from apical.pathways.factored.form import Form
from apical.phases.isolation import learning, preserved, weights_preserved
from apical.rules import Rule


@dataclass
class Call:
    """One call of a synapse in a dry run; shapes without the batch."""

    name: str
    input: torch.Size
    output: torch.Size
    rows: int
    signal: bool
    """Whether the input depends on weights, so that a teaching signal leaves the synapse there."""
    derived: bool
    """Whether the input is made in the model, and nothing that it was given."""


@dataclass
class Shown:
    """Everything that a dry run has shown.

    Attributes:
        calls: of synapses, in order. blocks: name of a block -> shape of its output, without the batch.
        output: shape of the output that the loss is made of, without the batch; None if it needs no gradient. rows: its samples.
        forms: name of a place where direct signals enter -> how its feedback is kept, where that is not in full.
        uses: of parameters outside of the calls of synapses.
    """

    calls: list[Call] = field(default_factory=list)
    blocks: dict[str, torch.Size] = field(default_factory=dict)
    output: torch.Size | None = None
    rows: int = 0
    forms: dict[str, Form] = field(default_factory=dict)
    uses: Uses = field(default_factory=Uses)

    @property
    def reached(self) -> set[str]:
        """Names of the synapses that were called with a graph."""
        return {call.name for call in self.calls}

    def signal(self, name: str) -> torch.Size | None:
        """Shape of the signal that leaves synapse `name` at its input, or None."""
        return next((call.input for call in self.calls if call.name == name and call.signal), None)

    def derived(self, name: str) -> bool:
        """Whether synapse `name` was called, with activity that is made in the model alone."""
        calls = [call.derived for call in self.calls if call.name == name]
        return bool(calls) and all(calls)

    def receivers(self, chained: bool) -> list[str]:
        """Names of the synapses at whose input the output's error enters: all that a signal leaves; in a chain, the first."""
        names = [call.name for call in self.calls if call.signal]
        return names[:1] if chained else names

    def feedback_shape(self, features: torch.Size, copies: int = 1) -> torch.Size:
        """Shape of direct feedback to activity of `features`: [outputs, *features], with a copy's own outputs."""
        assert self.output is not None
        return torch.Size([self.output.numel() // copies, *features])


def dry_run(
    model: nn.Module,
    names: Sequence[str],
    example_input: Any,
    at: Sequence[str] | None,
    output: Which,
    *,
    direct: bool,
) -> Shown:
    """Run a plain model once on `example_input`, in eval mode and without a trace.

    Args:
        model: not attached yet. names: of the layers that become synapses. example_input: a batch as `attach` takes it.
        at: names of blocks that cut the graph. output: which tensor the loss is made of.
        direct: whether signals come from that tensor, which is then looked at.

    Raises:
        ValueError: if the input does not pass through the model, or the output can't be picked.
    """
    shown = Shown()
    handles = []
    given = set(map(id, tensors(example_input)))

    def see(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
            x = input_of(args, kwargs)
            # Without a graph nothing tells what x depends on, but for the first layer of a reentrant checkpoint.
            if torch.is_grad_enabled() or (x.requires_grad and graph_comes_later()):
                derived = id(x) not in given
                shown.calls.append(Call(name, x.shape[1:], result.shape[1:], len(x), x.requires_grad, derived))

        return hook

    def cut(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> Tensor:
            if not isinstance(result, Tensor):
                raise _ShownError(
                    f"at= names {name!r}, which returns a {type(result).__name__}; name modules that return a tensor"
                )
            shown.blocks[name] = result.shape[1:]
            return result.detach()

        return hook

    try:
        handles += [model.get_submodule(name).register_forward_hook(see(name), with_kwargs=True) for name in names]
        handles += [model.get_submodule(name).register_forward_hook(cut(name)) for name in at or ()]
        try:
            with _passing_graph(), watching(model, names) as shown.uses:
                result = _pass(model, example_input)
        except RuntimeError as error:
            # torch.func inside a forward pass can't do with that.
            if "saved tensor hooks" not in str(error):
                raise
            shown.calls.clear()
            with watching(model, names) as shown.uses:
                result = _pass(model, example_input)
    except _ShownError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"example_input {_describe(example_input)} does not pass through the model: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if direct:
        _see_output(shown, result, output)
    return shown


def _pass(model: nn.Module, example_input: Any) -> Any:
    # A layer that is frozen now may learn later: what counts is whether the input depends on weights at all.
    with (
        weights_preserved(model),
        preserved(model, also=example_input),
        learning(model, True),
        torch.enable_grad(),
    ):
        known = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
        model.eval()
        result = run(model, example_input)
        made = [name for name, _ in (*model.named_modules(), *model.named_parameters()) if name not in known]
        if made:
            raise _ShownError(
                f"the first forward pass makes layers ({', '.join(made)}), which no rule would cover; call the model on a batch "
                "before apical.attach"
            )
        return result


@contextmanager
def _passing_graph() -> Iterator[None]:
    """While open, a graph is built that can't be backpropagated any more afterwards, whoever has kept tensors of it.

    It is that of the plain layers: a signal through it would be backpropagation's.
    """
    saved: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        found = _Saved(tensor)
        saved.add(found)
        return found

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, _Saved.unpack):
            yield
    finally:
        for one in saved:
            one.tensor = None


class _Saved:
    """A tensor that autograd keeps for a backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def unpack(self) -> Tensor:
        """The tensor itself, as long as the dry run goes on."""
        if self.tensor is None:
            raise RuntimeError(
                "this backward pass goes through activity of the dry run that apical.attach makes with example_input, kept by a "
                "hook or in a variable outside the model; clear what was kept there after attach"
            )
        return self.tensor


def _see_output(shown: Shown, result: Any, output: Which) -> None:
    tensor = pick(result, output)
    substitute(result, tensor, tensor)
    if tensor.dim() == 0 or not len(tensor):
        raise ValueError(
            f"the model's output has shape {list(tensor.shape)}, not [N, ...]: a direct signal needs the output that the loss "
            "is computed from, before any mean or sum over samples; return it too, and name it with output="
        )
    shown.rows = len(tensor)
    if tensor.requires_grad:
        shown.output = tensor.shape[1:]


class _ShownError(Exception):
    """A fault that shows itself in the dry run, in words."""


def _describe(example: Any) -> str:
    if isinstance(example, Tensor):
        device = "" if example.device.type == "cpu" else f", on {example.device}"
        return f"of shape {list(example.shape)} ({str(example.dtype).removeprefix('torch.')}{device})"
    if isinstance(example, Mapping):
        return "{" + ", ".join(f"{key}: {_describe(value)}" for key, value in example.items()) + "}"
    if isinstance(example, tuple | list):
        return "(" + ", ".join(map(_describe, example)) + ")"
    return repr(example)


def check_wiring(model: nn.Module, rules: dict[str, Rule], shown: Shown, at: Sequence[str] | None) -> None:
    """Settle how direct feedback is kept (`Shown.forms`), or raise a ValueError if a signal can't reach what a run has shown."""
    rule = next((one for one in rules.values() if one.direct), None)
    if rule is None:
        return
    if shown.output is None:
        raise ValueError(
            "the output that the loss is made of depends on no weights"
            + (f"; is one of at={list(at)} the output itself? Name modules before it" if at else "")
        )
    folded = next((c for c in shown.calls if c.signal and c.rows != shown.rows and rules[c.name].direct), None)
    if folded is not None and not at:
        raise ValueError(
            f"activity at '{folded.name}' has {folded.rows} rows, but the output has {shown.rows}; a direct signal needs the "
            "batch in the first dimension throughout (name whole blocks with at=[...], or keep positions in dimensions of "
            "their own)"
        )
    shapes: dict[str, torch.Size] = {}
    for call in () if at or isinstance(rule.pathway, Indirect) else shown.calls:
        if call.signal and rules[call.name].direct and shapes.setdefault(call.name, call.input) != call.input:
            raise ValueError(
                f"'{call.name}' is called with activity of shapes {list(shapes[call.name])} and {list(call.input)} (without the "
                f"batch), but its direct feedback has one shape; use a layer-wise rule such as 'fa', at least for it: "
                f"rule={{'': '{rule.name}', '{call.name}': 'fa'}}"
            )
    never = [name for name in (at or ()) if name not in shown.blocks]
    if never:
        raise ValueError(
            f"at= names {never}, which example_input never reaches; name modules that the forward pass calls"
        )
    if not isinstance(rule.pathway, Indirect):
        shown.forms = forms_of(model, rules, shown, at)
        return
    for before, after in pairwise(shown.calls):
        if after.signal and before.output != after.input:
            raise ValueError(
                f"rule '{rule.name}' sends its signal forward through the layers, so what lies between two synapses has to keep "
                f"shape, but '{before.name}' gives {list(before.output)} and '{after.name}' takes {list(after.input)}; use 'dfa'"
            )
