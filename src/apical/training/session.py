"""A run while it goes on: its steps, measurements and checkpoints, on Lightning Fabric."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from apical import data as images
from apical.data import ImageData, Split
from apical.learner import Learner
from apical.losses import LOSSES, error_rate
from apical.measures.alignment import alignment
from apical.rules import Rule
from apical.training.checkpoint import CheckpointError
from apical.training.config import TrainConfig
from apical.training.options import rule_of
from apical.training.run_folder import RunFolder
from apical.training.setup import make, make_fabric, make_optimizer, make_scheduler

ALIGNMENT_SAMPLES = 256
KEPT_PREDICTIONS = 1000


class NonFiniteLossError(RuntimeError):
    """A loss that became infinite or not a number."""


class Interrupted(Exception):  # noqa: N818
    """Stopped by the user, at a step from which the run can be resumed."""


Watcher = Callable[[int, int, dict[str, Any] | None], None]
"""watcher(step, steps, newest measurement): called after every step."""


class Session:
    """Everything that changes while a run goes on."""

    learner: Learner

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        rule = rule_of(config.rule)
        self.fabric = make_fabric(config, rule)
        self.fabric.launch()
        model = self.build(rule)
        optimizer = make_optimizer(config, rule, model)
        self.net, self.optimizer = self.fabric.setup(model, optimizer)
        self.dtype = next(model.parameters()).dtype
        self.scheduler = make_scheduler(config, optimizer)
        self.criterion = LOSSES[config.loss]
        torch.manual_seed(self.global_seed(config))
        self.per_epoch = math.ceil(len(data.train) / config.batch)
        self.steps = self.per_epoch * config.epochs
        self.step, self.before = 0, 0.0
        self.loss_sum, self.loss_count = torch.zeros((), dtype=torch.float64), 0
        self.durations: deque[float] = deque(maxlen=2000)

    def global_seed(self, config: TrainConfig) -> int:
        """Of PyTorch's global generator, for whatever a network draws while it trains."""
        return config.seed + 7919 * (self.fabric.global_rank + 1)

    def build(self, rule: Rule) -> nn.Module:
        """The network to train, with its learner."""
        model, self.learner = make(self.config, rule, self.config.seed, self.data)
        return model

    def go(self, run: RunFolder, stopped: Callable[[], bool], watcher: Watcher) -> dict[str, Any]:
        """Train from the present step to the end; the result."""
        self.started = time.perf_counter()
        newest = self.measured(run)
        if self.step == 0 and newest is None:
            newest = self.measure(run)
        for index in self._order():
            tick = time.perf_counter()
            self.learn(index)
            self.durations.append(time.perf_counter() - tick)
            self.step += 1
            self._after_step()
            if self._due(self.config.test_every) or self.aligns():
                newest = self.measure(run)
            watcher(self.step, self.steps, newest)
            if self._due(self.config.checkpoint_every) and self.step < self.steps:
                self.save(run)
            if stopped() and self.step < self.steps:
                self.save(run)
                raise Interrupted(f"stopped at step {self.step} of {self.steps}; the run in {run.path} can be resumed")
        if newest is None:  # A loss of power may leave the last checkpoint without the line before it.
            newest = self.measure(run)
        return self.finish(run, newest)

    def _order(self) -> Iterator[Tensor]:
        """Batches of indices from the present step on."""
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.per_epoch)
            for number, index in enumerate(self.batches(epoch)):
                if number >= done:
                    yield index

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """An epoch's batches of indices."""
        return self._batches_of(self.config.seed, epoch)

    def _batches_of(self, seed: int, epoch: int) -> Iterator[Tensor]:
        """The order of an epoch depends on the seed and the epoch only."""
        generator = torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch)
        return images.batches(len(self.data.train), self.config.batch, generator=generator)

    def learn(self, index: Tensor) -> None:
        """One step on the samples at `index`."""
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

    def looks(self, loss: Tensor) -> bool:
        """Whether to look at the loss in this step: on a GPU every look waits for the device."""
        return loss.device.type == "cpu" or self.step % 50 == 0

    def _check_finite(self, loss: Tensor) -> None:
        if self.looks(loss):
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteLossError(self.fault(value, self.config))

    def fault(self, loss: float, config: TrainConfig) -> str:
        """That a loss is not finite, in words."""
        return (
            f"loss became {loss} at step {self.step + 1} (epoch {self.step // self.per_epoch + 1}) of rule "
            f"'{config.rule}' with seed {config.seed}; a smaller learning rate than {config.rate:g} is the usual remedy"
        )

    def _after_step(self) -> None:
        if self.scheduler is not None and self.step % self.per_epoch == 0:
            self.scheduler.step()

    def _due(self, every: int | None) -> bool:
        return self.step == self.steps or self.step % (every or self.per_epoch) == 0

    def aligns(self) -> bool:
        """Whether alignment is due."""
        return self.config.align_every != 0 and (self.step == 0 or self._due(self.config.align_every))

    def measured(self, run: RunFolder) -> dict[str, Any] | None:
        """What has been measured at the present step already, before the run was stopped."""
        return next((line for line in reversed(run.metrics.read()) if line["step"] == self.step), None)

    def measure(self, run: RunFolder) -> dict[str, Any]:
        """Test error and, where due, alignment; written as a line of metrics.jsonl."""
        line = self.line(self.outputs(self.data.test), self.loss_sum, self.learner)
        self.loss_sum.zero_()
        self.loss_count = 0
        if self.fabric.is_global_zero:
            run.metrics.append(line)
        return line

    def line(self, outputs: Tensor, loss_sum: Tensor, learner: Learner) -> dict[str, Any]:
        """One network's measurement, from its outputs [N, classes] for the test set and its loss since the last one."""
        labels = self.data.test.labels
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            "seconds": round(self.seconds, 3),
            "train_loss": float(loss_sum) / self.loss_count if self.loss_count else None,
            "test_loss": _number(self.criterion(outputs, labels).mean()),
            "test_error": error_rate(outputs, labels),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        if self.aligns():
            line["alignment"] = self._alignment(learner)
        return line

    @property
    def seconds(self) -> float:
        """How long the run has taken, with what came before it was resumed."""
        return self.before + time.perf_counter() - self.started

    @torch.no_grad()
    def outputs(self, split: Split) -> Tensor:
        """Outputs [N, classes] for all samples of a split, on the CPU."""
        self.net.eval()
        parts = []
        for index in torch.arange(len(split)).split(1000):
            x, _ = split.batch(index, device=self.fabric.device)
            parts.append(self.net(x).float().cpu())
        return torch.cat(parts)

    def _alignment(self, learner: Learner) -> dict[str, dict[str, float | None]]:
        index = torch.arange(min(ALIGNMENT_SAMPLES, len(self.data.test)))
        x, y = self.data.test.batch(index, device=self.fabric.device)
        learner.model.eval()
        found = alignment(learner, x.to(self.dtype), y, self.criterion)
        return {name: {k: _number(v) for k, v in a.asdict().items()} for name, a in found.items()}

    def finish(self, run: RunFolder, newest: dict[str, Any]) -> dict[str, Any]:
        """Write the last checkpoint and the result."""
        result = self.result(self.outputs(self.data.test), newest, run.metrics.read())
        self.save(run)
        if self.fabric.is_global_zero:
            run.finish(result)
        self.fabric.barrier()
        return result

    def result(self, outputs: Tensor, newest: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
        """One network's result, from its outputs for the test set and what was measured."""
        return {
            "test_error": error_rate(outputs, self.data.test.labels),
            "test_loss": newest["test_loss"],
            "steps": self.step,
            "epochs": self.config.epochs,
            "seconds": round(self.seconds, 3),
            "step_ms": round(1000 * statistics.median(self.durations), 4) if self.durations else None,
            "alignment": next((line["alignment"] for line in reversed(lines) if "alignment" in line), None),
            "predictions": outputs[:KEPT_PREDICTIONS].argmax(1).tolist(),
        }

    def save(self, run: RunFolder) -> None:
        """Write a checkpoint."""
        if not self.fabric.is_global_zero:
            return
        run.save(
            {
                "step": self.step,
                "seconds": self.seconds,
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
        """Go back to where the checkpoint was written.

        Raises:
            CheckpointError: if it is of another run.
        """
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


def _number(value: Any) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None
