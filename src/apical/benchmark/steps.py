"""Whole training steps of plain PyTorch and of rules, as functions to time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

import apical
from apical.attaching.attach import attach
from apical.benchmark.timing import Maker, Step, contest
from apical.data import ImageData
from apical.losses import LOSSES, cross_entropy
from apical.optim.local_sgd import LocalSGD
from apical.training.options import making, optimizer_of, rule_of
from apical.training.setup import make

if TYPE_CHECKING:
    from apical.comparison.config import CompareConfig

Mode = Literal["eager", "compiled", "captured"]
"""How a step runs: as written, its model by `torch.compile`, or as one CUDA graph (`apical.captured`)."""

PLAIN = "plain"
"""The name of the step that all others are compared with: plain PyTorch's backpropagation."""


def training_step(
    model: nn.Module,
    rule: str | None,
    x: Tensor,
    y: Tensor,
    *,
    optimizer: str,
    learning_rate: float = 1e-4,
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    local: bool = False,
    setting: dict[str, bool] | None = None,
    mixed: bool = False,
    mode: Mode = "eager",
) -> Step:
    """The whole step of a training loop as a function: forward, loss, backward, adapt, optimizer.

    Args:
        model: the network; it is put into training mode, and `rule` is attached to it.
        rule: a rule with its options as text, or None for plain PyTorch.
        x: the batch that every step sees.
        y: its targets.
        optimizer: a class of torch.optim with options as text.
        learning_rate: the optimizer's `lr`.
        criterion: gives losses [N] of outputs and targets.
        local: update inside the backward pass (`LocalSGD`).
        setting: implementation of PyTorch's optimizer, such as {"fused": True}.
        mixed: bfloat16 autocast and, for images, channels_last.
        mode: how the step runs.

    Raises:
        ValueError: if there is no such rule or optimizer, the optimizer can't be made, or there is no `apical.captured`.

    >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    >>> step = training_step(model, "fa", x, y, optimizer="SGD:momentum=0.9")
    >>> before = model.weight.clone()
    >>> step()
    >>> bool((model.weight != before).any())
    True
    """
    model.train()
    if mixed and x.dim() == 4:
        model = convert_conv2d_weight_memory_format(model, torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    learner = None
    if rule is not None:
        learner = attach(model, rule_of(rule), example_input=x[:2], generator=torch.Generator().manual_seed(1))
    kind, options = optimizer_of(optimizer, lr=learning_rate)
    if local and learner is not None:
        stepper: torch.optim.Optimizer = LocalSGD(learner, **options)
    else:
        with making("optimizer", optimizer, kind):
            stepper = kind(model.parameters(), **{**options, **(setting or {})})

    call = torch.compile(model) if mode == "compiled" else model

    def step(x: Tensor, y: Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            loss = criterion(call(x), y).mean()
        loss.backward()
        if learner is not None:
            learner.adapt(x, y, criterion)
        stepper.step()
        stepper.zero_grad()

    if mode != "captured":
        return _of(model, lambda: step(x, y))
    run = capturing()(step, x, y)

    def replay() -> None:
        run(x, y)
        if getattr(run, "why", None) is not None:
            raise RuntimeError(f"the step can't be captured: {run.why}")

    return _of(model, replay)


def _of(model: nn.Module, step: Step) -> Step:
    """The step, which says what its model is."""
    vars(step)["model"] = model
    return step


def capturing() -> Callable[..., Any]:
    """`apical.captured`.

    Raises:
        ValueError: if there is none.
    """
    found = getattr(apical, "captured", None)
    if found is None:
        raise ValueError("mode captured needs apical.captured, which this version has not; leave it out")
    return found


def step_ratios(config: CompareConfig, data: ImageData, *, seconds: float = 6.0) -> dict[str, float]:
    """Rule -> time per step as a ratio to plain backpropagation, on a comparison's own network, data, precision and device.

    Args:
        config: what was compared: network, rules, batch, optimizer, rate and loss are taken from it.
        data: the comparison's; the first batch of its training images is used.
        seconds: time over all rules.
    """
    device = "cuda" if config.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        model = make(config, rule_of("bp"), config.first_seed, data)[1].detach().to(device)
        x, y = data.train.batch(torch.arange(min(config.batch, len(data.train))), device=device)

        def maker(rule: str | None) -> Maker:
            return lambda: training_step(
                copy.deepcopy(model),
                rule,
                x,
                y,
                optimizer=config.optimizer,
                learning_rate=config.rate,
                criterion=LOSSES[config.loss],
                mixed=config.precision == "bf16-mixed",
            )

        makers = {PLAIN: maker(None), **{rule: maker(rule) for rule in config.rules}}
        timings = contest(makers, seconds=seconds, repeats=2, device=device)
    return {rule: timings[rule].ratio for rule in config.rules}
