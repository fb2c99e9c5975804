"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import math
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical import data as images
from apical.alignment import alignment
from apical.connectivity import Connectivity
from apical.data import ImageData, Split
from apical.learner import Learner, attach
from apical.losses import LOSSES, error_rate
from apical.networks import build
from apical.noise import NoisyActivations
from apical.registry import synapse_type
from apical.rules import Rule
from apical.spec import optimizer_of, rule_of, scheduler_of
from apical.training.checkpoint import CheckpointError
from apical.training.config import Recipe, TrainConfig
from apical.training.run import RunFolder

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ALIGNMENT_SAMPLES = 256
KEPT_PREDICTIONS = 1000


class NonFiniteLossError(RuntimeError):
    """A loss that became infinite or not a number."""


class Interrupted(Exception):  # noqa: N818
    """Stopped by the user, at a step from which the run can be resumed."""


Watcher = Callable[[int, int, dict[str, Any] | None], None]
"""watcher(step, steps, newest measurement): called after every step."""


def make(config: Recipe, rule: Rule, seed: int, data: ImageData) -> tuple[nn.Module, Learner]:
    """The network and its learner, from nothing but the config and the seed.

    Networks of one seed start with the same weights under every rule.
    """
    torch.manual_seed(seed)
    model = build(config.network, shape=data.shape, classes=data.classes, activation=config.activation)
    if config.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.activation_noise:
        NoisyActivations(model, config.activation_noise)
    # Another stream than the weights': equal streams could give feedback equal to the weights.
    generator = torch.Generator().manual_seed(seed + 0x5EED_FEED)
    example = torch.zeros(2, *data.shape, dtype=next(model.parameters()).dtype)
    thinned: dict[str, float | Connectivity] = {"": config.connectivity}
    if config.whole_output:
        thinned[[name for name, module in model.named_modules() if synapse_type(module) is not None][-1]] = 1.0
    return model, attach(model, rule, example_input=example, generator=generator, connectivity=thinned)


def make_optimizer(config: Recipe, rule: Rule, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the config, over weights and trainable feedback alike."""
    decay = rule.weight_decay if config.weight_decay is None else config.weight_decay
    kind, options = optimizer_of(config.optimizer, lr=config.rate, weight_decay=decay)
    return kind(model.parameters(), **options)


def train(
    config: TrainConfig,
    folder: Path | str,
    *,
    data: ImageData | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train one network by one rule, and leave a run folder.

    Args:
        config: what to run. data: loaded already, or None to load what the config names.
        folder: for config.json, metrics.jsonl, checkpoint/ and result.json.
        resume: go on with the run in `folder`. It ends bit-identical to one that was never stopped.
        watcher: called after every step.

    Returns:
        The result, as in result.json: test_error [%], test_loss, steps, seconds, step_ms, alignment, predictions.

    Raises:
        NonFiniteLossError: the loss is infinite or nan. Interrupted: Ctrl-C; the run can be resumed.
        ValueError: bad config, data, folder or checkpoint, before anything is written.
    """
    data = images.load(config.data) if data is None else data
    run = RunFolder(folder)
    session = _Session(config, data)
    if resume:
        run.reopen(config.asdict())
        if run.result is not None:
            return run.result
        state = run.restore()
        if state is not None:
            session.load_state(state)
        if session.fabric.is_global_zero:
            run.metrics.cut(None if state is None else session.step)
    elif session.fabric.is_global_zero:
        run.start(config.asdict())
    with _stoppable() as stopped:
        return session.go(run, stopped, watcher or (lambda *_: None))


class _Session:
    """Everything that changes while a run goes on."""

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        rule = rule_of(config.rule)
        self.fabric = _fabric(config, rule)
        model, self.learner = make(config, rule, config.seed, data)
        optimizer = make_optimizer(config, rule, model)
        self.net, self.optimizer = self.fabric.setup(model, optimizer)
        self.dtype = next(model.parameters()).dtype
        self.scheduler = None
        if config.scheduler is not None:
            kind, options = scheduler_of(config.scheduler)
            self.scheduler = kind(optimizer, **options)
        self.criterion = LOSSES[config.loss]
        torch.manual_seed(config.seed + 7919 * (self.fabric.global_rank + 1))
        self.per_epoch = math.ceil(len(data.train) / config.batch)
        self.steps = self.per_epoch * config.epochs
        self.step, self.before = 0, 0.0
        self.loss_sum, self.loss_count = torch.zeros((), dtype=torch.float64), 0
        self.durations: deque[float] = deque(maxlen=2000)

    def go(self, run: RunFolder, stopped: Callable[[], bool], watcher: Watcher) -> dict[str, Any]:
        self.started = time.perf_counter()
        newest = next((line for line in reversed(run.metrics.read()) if line["step"] == self.step), None)
        if self.step == 0 and newest is None:
            newest = self.measure(run)
        for index in self._order():
            tick = time.perf_counter()
            self._learn(index)
            self.durations.append(time.perf_counter() - tick)
            self.step += 1
            self._after_step()
            if self._due(self.config.test_every) or self._aligns():
                newest = self.measure(run)
            watcher(self.step, self.steps, newest)
            if self._due(self.config.checkpoint_every) and self.step < self.steps:
                self.save(run)
            if stopped() and self.step < self.steps:
                self.save(run)
                raise Interrupted(f"stopped at step {self.step} of {self.steps}; the run in {run.path} can be resumed")
        assert newest is not None
        return self.finish(run, newest)

    def _order(self) -> Iterator[Tensor]:
        """Batches of indices from the present step on. The order of an epoch depends on the seed and the epoch only."""
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.per_epoch)
            generator = torch.Generator().manual_seed((self.config.seed + 1) * 1_000_003 + epoch)
            for number, index in enumerate(
                images.batches(len(self.data.train), self.config.batch, generator=generator)
            ):
                if number >= done:
                    yield index

    def _learn(self, index: Tensor) -> None:
        share = index.tensor_split(self.fabric.world_size)[self.fabric.global_rank]
        x, y = self.data.train.batch(share, device=self.fabric.device)
        x = x.to(self.dtype)
        if self.config.input_noise:
            x = torch.add(x, torch.randn_like(x), alpha=self.config.input_noise)
        self.net.train()
        losses = self.criterion(self.net(x), y)
        loss = losses.mean()
        self._check_finite(loss)
        self.fabric.backward(loss)
        self.learner.adapt(x, y, self.criterion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += losses.detach().sum().to(self.loss_sum)
        self.loss_count += len(losses)

    def _check_finite(self, loss: Tensor) -> None:
        # On a GPU every look waits for the device, so look now and then.
        if loss.device.type == "cpu" or self.step % 50 == 0:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteLossError(
                    f"loss became {value} at step {self.step + 1} (epoch {self.step // self.per_epoch + 1}) of rule "
                    f"'{self.config.rule}' with seed {self.config.seed}; a smaller learning rate than "
                    f"{self.config.rate:g} is the usual remedy"
                )

    def _after_step(self) -> None:
        if self.scheduler is not None and self.step % self.per_epoch == 0:
            self.scheduler.step()

    def _due(self, every: int | None) -> bool:
        return self.step == self.steps or self.step % (every or self.per_epoch) == 0

    def _aligns(self) -> bool:
        return self.config.align_every != 0 and (self.step == 0 or self._due(self.config.align_every))

    def measure(self, run: RunFolder) -> dict[str, Any]:
        """Test error and, where due, alignment; written as a line of metrics.jsonl."""
        outputs, labels = self._outputs(self.data.test)
        losses = self.criterion(outputs, labels)
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            "seconds": round(self.before + time.perf_counter() - self.started, 3),
            "train_loss": float(self.loss_sum) / self.loss_count if self.loss_count else None,
            "test_loss": _number(losses.mean()),
            "test_error": error_rate(outputs, labels),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        self.loss_sum.zero_()
        self.loss_count = 0
        if self._aligns():
            line["alignment"] = self._alignment()
        if self.fabric.is_global_zero:
            run.metrics.append(line)
        return line

    @torch.no_grad()
    def _outputs(self, split: Split) -> tuple[Tensor, Tensor]:
        self.net.eval()
        parts = []
        for index in torch.arange(len(split)).split(1000):
            x, _ = split.batch(index, device=self.fabric.device)
            parts.append(self.net(x).float().cpu())
        return torch.cat(parts), split.labels

    def _alignment(self) -> dict[str, dict[str, float | None]]:
        index = torch.arange(min(ALIGNMENT_SAMPLES, len(self.data.test)))
        x, y = self.data.test.batch(index, device=self.fabric.device)
        self.net.eval()
        found = alignment(self.learner, x.to(self.dtype), y, self.criterion)
        return {name: {k: _number(v) for k, v in a.asdict().items()} for name, a in found.items()}

    def finish(self, run: RunFolder, newest: dict[str, Any]) -> dict[str, Any]:
        outputs, labels = self._outputs(self.data.test)
        lines = run.metrics.read()
        aligned = next((line["alignment"] for line in reversed(lines) if "alignment" in line), None)
        result = {
            "test_error": error_rate(outputs, labels),
            "test_loss": newest["test_loss"],
            "steps": self.step,
            "epochs": self.config.epochs,
            "seconds": round(self.before + time.perf_counter() - self.started, 3),
            "step_ms": round(1000 * statistics.median(self.durations), 4) if self.durations else None,
            "alignment": aligned,
            "predictions": outputs[:KEPT_PREDICTIONS].argmax(1).tolist(),
        }
        self.save(run)
        if self.fabric.is_global_zero:
            run.finish(result)
        self.fabric.barrier()
        return result

    def save(self, run: RunFolder) -> None:
        if not self.fabric.is_global_zero:
            return
        run.save(
            {
                "step": self.step,
                "seconds": self.before + time.perf_counter() - self.started,
                "model": self.learner.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "learner": self.learner.state_dict(),
                "loss": [float(self.loss_sum), self.loss_count],
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            }
        )

    def load_state(self, state: dict[str, Any]) -> None:
        try:
            self.learner.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            self.learner.load_state_dict(state["learner"])
            self.step, self.before = state["step"], state["seconds"]
            self.loss_sum.fill_(state["loss"][0])
            self.loss_count = state["loss"][1]
            torch.set_rng_state(state["random"])
            if state["random_cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(state["random_cuda"])
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this run: {error}; delete the folder to start anew"
            ) from error


def _fabric(config: Recipe, rule: Rule) -> Fabric:
    from lightning_fabric import (
        Fabric,
    )  # Here, because importing it takes longer than everything else of the command line.
    from lightning_fabric.strategies.ddp import DDPStrategy

    strategy: Any = "auto"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        strategy = DDPStrategy(find_unused_parameters=rule.pathway.name in ("none", "scalar"))
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = Fabric(accelerator=config.accelerator, devices=devices, strategy=strategy, precision=config.precision)
    fabric.launch()
    return fabric


def _number(value: Any) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C stops at the next step's end; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
