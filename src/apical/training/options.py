"""Names with options, as one string: "SGD:momentum=0.9,nesterov=True", "urfb:epsilon=0.5", "MultiStepLR:milestones=[3,4]"."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from apical.checks import fits, nearest, told
from apical.rules import Rule, rule

_PLAIN = {written: kind for kind in (bool, int, float) for written in (kind, kind.__name__)}
"""What PyTorch's annotations say where they are plain; other values are left to its constructors."""


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a specification.

    Raises:
        ValueError: if the options are not key=value pairs with literal values (a bare word is a string).
    """
    name, _, rest = text.partition(":")
    if not rest:
        return name.strip(), {}
    try:
        call = ast.parse(f"f({rest})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        options = {
            str(k.arg): k.value.id if isinstance(k.value, ast.Name) else ast.literal_eval(k.value)
            for k in call.keywords
        }
    except (SyntaxError, ValueError, AssertionError):
        raise ValueError(f"can't read the options in {text!r}; write them as name:key=value,key=value") from None
    return name.strip(), options


def rule_of(text: str) -> Rule:
    """The rule a specification names, e.g. "fa" or "urfb:epsilon=0.5".

    Options of initialization take a paper's name or the name of a `torch.nn.init` function: "fa:init=orthogonal_".
    """
    name, options = parse(text)
    init = options.get("init")
    if isinstance(init, str) and callable(getattr(torch.nn.init, init, None)):
        options["init"] = getattr(torch.nn.init, init)
    return rule(name, **options)


def optimizer_of(text: str, **defaults: Any) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """A class of `torch.optim` and its options."""
    name, options = parse(text)
    # LBFGS evaluates the loss several times a step; SparseAdam takes sparse gradients only.
    left_out = ("LBFGS", "SparseAdam")
    found = {k: v for k, v in vars(torch.optim).items() if _is_kind(v, torch.optim.Optimizer) and k not in left_out}
    if name.lower() == "localsgd":
        raise ValueError(
            "apical.LocalSGD moves weights within the backward pass, where a run can neither clip nor accumulate gradients; take "
            "SGD here, which teaches the same, and LocalSGD in a loop of your own"
        )
    kind = _choose(name, found, "optimizer")
    accepted = inspect.signature(kind).parameters
    return kind, _accepted(kind, {**{k: v for k, v in defaults.items() if k in accepted}, **options})


def scheduler_of(text: str) -> tuple[type[torch.optim.lr_scheduler.LRScheduler], dict[str, Any]]:
    """A class of `torch.optim.lr_scheduler` and its options."""
    name, options = parse(text)
    module = torch.optim.lr_scheduler
    # Plateaus are judged by a metric; the loop's schedules depend on the epoch alone.
    left_out = ("LRScheduler", "ReduceLROnPlateau")
    found = {k: v for k, v in vars(module).items() if _is_kind(v, module.LRScheduler) and k not in left_out}
    kind = _choose(name, found, "scheduler")
    return kind, _accepted(kind, options)


@contextmanager
def making(what: str, text: str, kind: type) -> Iterator[None]:
    """What PyTorch refuses of `kind`, with the options in `text`, as an error that names them; `what` says what is made.

    Raises:
        ValueError: if it can't be made.
    """
    try:
        yield
    except Exception as error:
        parameters = inspect.signature(kind).parameters
        defaults = {name: parameters[name].default for name in parse(text)[1]}
        usual = ", ".join(
            f"{name}={value!r}" for name, value in defaults.items() if value is not inspect.Parameter.empty
        )
        raise ValueError(
            f"{what} {text!r} can't be made: {error}" + (f"; by default {usual}" if usual else "")
        ) from error


def _is_kind(value: Any, kind: type) -> bool:
    return (
        isinstance(value, type) and issubclass(value, kind) and value is not kind and not value.__name__.startswith("_")
    )


def _choose(name: str, table: dict[str, Any], what: str) -> Any:
    if name in table:
        return table[name]
    folded = {key.lower(): value for key, value in table.items()}
    if name.lower() in folded:
        return folded[name.lower()]
    raise ValueError(f"unknown {what} {name!r}; {nearest(name, table)}")


def _accepted(kind: type, options: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.items()
    accepted = {name: p for name, p in parameters if name not in ("params", "optimizer", "self")}
    unknown = [key for key in options if key not in accepted]
    if unknown:
        raise ValueError(f"{kind.__name__} has no option {', '.join(map(repr, unknown))}; it has {', '.join(accepted)}")
    missing = [name for name, p in accepted.items() if p.default is p.empty and name not in options]
    if missing:
        written = ",".join(f"{name}=..." for name in missing)
        raise ValueError(f"{kind.__name__} needs {', '.join(missing)}; write {kind.__name__}:{written}")
    for name, value in options.items():
        wanted = _PLAIN.get(accepted[name].annotation)
        if wanted is not None and not fits(value, wanted):
            raise ValueError(f"{kind.__name__}: {name} must be {told(wanted)}, got {value!r}")
    return options
