"""The parts of a run, made from nothing but its config: network and learner, optimizer, schedule, Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from apical.attaching.attach import attach, learner_of
from apical.attaching.connectivity import Connectivity
from apical.cuda_graphs.cuda import graphs_for
from apical.cuda_graphs.step import Captured
from apical.data import ImageData
from apical.distributed import started
from apical.learner import Learner
from apical.losses import LOSSES, cross_entropy
from apical.networks import build
from apical.networks.noisy import NoisyActivations
from apical.networks.speedrun import Whitening
from apical.networks.users import zeros
from apical.rules import Rule
from apical.synapses.registry import synapse_type
from apical.training.config import Recipe, TrainConfig
from apical.training.options import making, optimizer_of, rule_of, scheduler_of
from apical.training.steps.gradients import Clip
from apical.training.steps.groups import in_groups
from apical.training.steps.rates import Rates, for_graphs

Step = Callable[[Tensor, Tensor, Callable[[Tensor], None]], Tensor]
"""step(x, y, check) -> losses summed over the batch; it gives `check` the mean losses before it learns from them."""

MEASURED = 2000
"""Training images that layers are made from which are measured and not learned."""

REHEARSED = 1000
"""Epochs of a schedule that are tried before a run, the last one among them."""

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Shaped(Protocol):
    """What a network has to know of its data: the images' shape (C, H, W), or a text's (T,), and how many classes there are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (T,)."""
        ...

    @property
    def classes(self) -> int:
        """How many."""
        ...


def make(config: Recipe, rule: Rule, seed: int, data: Shaped) -> tuple[nn.Module, Learner]:
    """The network and its learner, from nothing but the config and the seed.

    Networks of one seed start with the same weights under every rule.
    """
    for name in ("input_noise", "mirrored"):
        if getattr(config, name) and len(data.shape) == 1:
            raise ValueError(f"{name}={getattr(config, name)} is for images, and a text has bytes; leave it out")
    torch.manual_seed(seed)
    model = build(config.network, shape=data.shape, classes=data.classes, activation=config.activation)
    _measure(model, data)
    if config.memory_format == "channels_last":
        changed: Any = model  # In place; PyTorch's types leave this way of calling `to` out.
        changed.to(memory_format=torch.channels_last)
    if config.activation_noise:
        NoisyActivations(model, config.activation_noise)
    # Another stream than the weights': equal streams could give feedback equal to the weights.
    generator = torch.Generator().manual_seed(seed + 0x5EED_FEED)
    example = zeros(2, data.shape, next(model.parameters()))
    thinned: dict[str, float | Connectivity] = {"": config.connectivity}
    if config.whole_output:
        thinned[[name for name, module in model.named_modules() if synapse_type(module) is not None][-1]] = 1.0
    return model, attach(model, rule, example_input=example, generator=generator, connectivity=thinned)


def _measure(model: nn.Module, data: Shaped) -> None:
    """Make the layers that are measured and not learned, where there are images: a run's checkpoint has them already."""
    for layer in model.modules():
        if isinstance(layer, Whitening) and isinstance(data, ImageData):
            layer.measure(x for x, _ in islice(data.train.in_order(500), MEASURED // 500))


class Engine:
    """Where and how a session's networks learn: Lightning Fabric, optimizer, schedule and loss, from the config alone.

    Args:
        config: of the run; of several side by side, the first one's.
        build: makes the module to train, given the rule, when Fabric knows which process this is.
        captured: whether steps are CUDA graphs where they can be.

    Attributes:
        net: the module as Fabric calls it. dtype: of its weights, and so of its input.
        rows: samples of the present step's batch, in all processes together; None before the first step.
        criterion: the loss per sample that is measured. loss: that which is learned from, with smoothed labels where asked for.
    """

    def __init__(self, config: TrainConfig, build: Callable[[Rule], nn.Module], *, captured: bool = True) -> None:
        rule = rule_of(config.rule)
        self.fabric = make_fabric(config, rule)
        self.fabric.launch()
        model = build(rule)
        device = self.fabric.device
        # Scaled losses are looked at in every step.
        alone = self.fabric.world_size == 1 and config.precision != "16-mixed"
        self._graphs = graphs_for(device) if captured and alone else None
        moving = config.cooldown_epochs and (self._graphs is not None or device.type == "cuda")
        optimizer = make_optimizer(config, rule, model, device if moving else None)
        self.net, self.optimizer = self.fabric.setup(model, optimizer)
        self.dtype = next(model.parameters()).dtype
        self.scheduler = make_scheduler(config, optimizer)
        self.criterion = self.loss = LOSSES[config.loss]
        if config.label_smoothing:
            self.loss = partial(cross_entropy, label_smoothing=config.label_smoothing)
        self.rows: int | None = None
        self._seed, self._batch, self.rates = config.seed, config.batch, Rates(config, optimizer)
        self._clip = None if config.clip is None else Clip(learner_of(model), config.clip)
        self._captured: Captured | None = None
        torch.manual_seed(self.global_seed(config.seed))

    def global_seed(self, seed: int) -> int:
        """The seed of PyTorch's global generator, for whatever a network draws while it trains; each process has its own."""
        return seed + 7919 * (self.fabric.global_rank + 1)

    def begin(self, step: int, rows: int, per_epoch: int) -> None:
        """Begin a step, of so many in an epoch, on a batch of `rows` samples in all processes together.

        A checkpoint holds the random state of the first process. All others begin every step from one that its number tells, so
        that what is resumed draws what it would have drawn, on every process.
        """
        self.rows = rows
        self.rates.begin(step, per_epoch)
        if self.fabric.global_rank:
            torch.manual_seed(self.global_seed(self._seed) + 1_000_003 * (step + 1))

    @property
    def smallest(self) -> int:
        """Samples in the smallest share that a process has of the present batch."""
        return (self.rows or 0) // self.fabric.world_size

    def adding(self, last: bool) -> AbstractContextManager[Any]:
        """While open, gradients add up in each process; it is by the `last` part of a batch that they are averaged over all."""
        if last or self.fabric.world_size == 1:
            return nullcontext()
        return self.fabric.no_backward_sync(self.net)

    def outputs(self, x: Tensor) -> Tensor:
        """The network's outputs, in double precision where that is the config's: Fabric alone would round them to single."""
        if self.dtype != torch.float64:
            return self.net(x)
        with self.fabric.autocast():
            return self.net(x)

    def taken(self, x: Tensor) -> Tensor:
        """A batch as the network takes it: images in its numbers, a text's bytes as they are."""
        return x.to(self.dtype) if x.is_floating_point() else x

    def mean(self, losses: Tensor) -> Tensor:
        """The mean of this process's losses, weighed so that the mean over processes is that of the whole batch."""
        world = self.fabric.world_size
        if self.rows is None or len(losses) * world == self.rows:
            return losses.mean()
        return losses.sum() * (world / self.rows)

    def learn(self, step: Step, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        """What `step` gives on a batch; on a GPU by a graph, after which `check` sees the mean losses."""
        with self.rates.applied():
            return self._learned(step, x, y, check)

    def _learned(self, step: Step, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        # A graph has one learning rate, or the place of one.
        if self._graphs is None or self.rows != self._batch or (self.rates.share < 1 and not self.rates.in_place):
            return step(x, y, check)
        if self._captured is None:

            def whole(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                means: list[Tensor] = []
                sums = step(x, y, means.append)
                return sums, torch.stack(means).sum(0)

            self._captured = Captured(whole, (x, y), self._graphs, tells=False)
        sums, means = self._captured(x, y)
        check(means)
        return sums

    def step(self) -> None:
        """Take the optimizer's step, and clear the gradients."""
        if self._clip is not None:
            self._clip.shorten()
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_optimizer(
    config: Recipe, rule: Rule, model: nn.Module, moving: torch.device | None = None
) -> torch.optim.Optimizer:
    """The optimizer of the config, over weights and trainable feedback alike.

    moving: where rates are to lie that a graph reads, as they change from step to step; None: they are plain numbers.
    """
    decay = rule.weight_decay if config.weight_decay is None else config.weight_decay
    kind, options = optimizer_of(config.optimizer, lr=config.rate, weight_decay=decay)
    if config.decayed == "weights" and "weight_decay" not in options:
        raise ValueError(
            f"decayed='weights' needs an optimizer with weight_decay, and {kind.__name__} has none; take another"
        )
    others: dict[str, float | Tensor] = {} if config.decayed == "all" else {"weight_decay": 0.0}
    own = options if moving is None else for_graphs(options, kind, moving)
    if config.bias_rate != 1:
        others["lr"] = own["lr"] * config.bias_rate
    with making("optimizer", config.optimizer, kind):
        made = kind(in_groups(learner_of(model), **others) if others else model.parameters(), **own)
        trial = _on_trial(kind, options, config)
        # The first step may leave out what the second one computes with.
        _try_step(trial)
        _try_step(trial)
        return made


def _on_trial(kind: type[torch.optim.Optimizer], options: dict[str, Any], config: Recipe) -> torch.optim.Optimizer:
    """An optimizer like that of the config with one weight that is nought: its steps show numbers it can't compute with."""
    weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64 if config.precision == "64-true" else torch.float32))
    weight.grad = torch.zeros_like(weight)
    return kind([weight], **options)


def _try_step(trial: torch.optim.Optimizer) -> None:
    try:
        trial.step()
    except RuntimeError as error:
        raise ValueError(f"{error}, at learning rate {trial.param_groups[0]['lr']:g}") from error


def make_scheduler(config: Recipe, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The scheduler of the config, if it has one."""
    if config.scheduler is None:
        return None
    kind, options = scheduler_of(config.scheduler)
    with making("scheduler", config.scheduler, kind):
        # Some options turn out to be bad after the first epochs only, or at the last.
        trial = _on_trial(*optimizer_of(config.optimizer, lr=config.rate), config)
        rehearsed = kind(trial, **options)
        for epoch in range(min(config.epochs, REHEARSED)):
            if epoch == REHEARSED - 1:
                rehearsed.last_epoch = config.epochs - 1
            _try_step(trial)
            rehearsed.step()
        _try_step(trial)
        return kind(optimizer, **options)


def check(config: Recipe, rule: Rule, seed: int, data: ImageData) -> None:
    """Make, once, all that a run is made of, so that what can't be made is told before anything is written.

    Raises:
        ValueError: if something can't be made.
    """
    make_fabric(config, rule)
    model, _ = make(config, rule, seed, data)
    make_scheduler(config, make_optimizer(config, rule, model))


def make_fabric(config: Recipe, rule: Rule) -> Fabric:
    """Where the run is trained, to be launched."""
    # Here, because importing it takes longer than everything else of the command line.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    strategy: Any = "auto"
    if started() > 1:
        strategy = DDPStrategy(find_unused_parameters=rule.pathway.name in ("none", "scalar"))
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        return Fabric(accelerator=config.accelerator, devices=devices, strategy=strategy, precision=config.precision)
    # Lightning's own kind of error is none of those that Python has for bad values.
    except Exception as error:
        raise ValueError(
            f"accelerator {config.accelerator!r} can't be had here ({error}); give 'auto' or 'cpu'"
        ) from error
