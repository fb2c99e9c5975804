"""A run while it goes on: its steps, measurements and checkpoints, whether of one network or of several side by side."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from apical.data import ImageData
from apical.data.batching import Batch
from apical.learner import Learner
from apical.losses import error_rate, scores
from apical.training.checkpoint import CheckpointError, Seal
from apical.training.metrics import MetricsLog
from apical.training.networks import Failures, Networks, NonFiniteLossError, not_finite
from apical.training.run_folder import RunFolder
from apical.training.steps.alignment import aligned
from apical.training.steps.best import OF_A_NETWORK, Best, Speed
from apical.training.stopping import Interrupted

__all__ = ["Interrupted", "NonFiniteLossError", "Session", "Watcher"]

KEPT_PREDICTIONS = 1000
Tested = dict[str, tuple[Tensor, Tensor]]
"""Role of a split -> outputs [networks, N, classes] for it, and its labels [N]."""

Watcher = Callable[[int, int, dict[str, Any] | None], None]
"""watcher(step, steps, newest measurement): called after every step."""


@final
class Session:
    """Training from the present step to the last: schedule, measurements, checkpoints, stopping.

    It is the same for one network and for several, whose `Networks` say how they learn and what they hold.

    Args:
        networks: what is trained. data: what on. metrics: where each network's measurements go.

    Attributes:
        step: steps taken. steps: steps in all.
        failed: network -> why, for networks whose loss, outputs or weights became infinite or not a number.
    """

    def __init__(self, networks: Networks, data: ImageData, metrics: Sequence[MetricsLog]) -> None:
        self.networks, self.data, self.metrics = networks, data, metrics
        self.engine, self.config = networks.engine, networks.configs[0]
        self.count = len(networks.configs)
        self.per_epoch = math.ceil(len(data.train) / self.config.batch)
        self.step, self.steps = 0, self.per_epoch * self.config.epochs
        self.failures = Failures(networks.configs, self.per_epoch)
        self.failed = self.failures.told
        self._newest: dict[int, dict[str, Any]] | None = None
        self._loss_sum, self._loss_count = torch.zeros(self.count, dtype=torch.float64), 0
        self._durations: deque[float] = deque(maxlen=2000)
        self._before = 0.0
        self._best, self._speed = Best(self.config.best_by, metrics[0]), Speed(data.shape)

    def go(self, run: RunFolder, stopped: Callable[[], bool], watcher: Watcher) -> None:
        """Train from the present step to the last, with checkpoints in `run`.

        Raises:
            NonFiniteLossError: no network is left whose loss, outputs and weights are finite.
            Interrupted: `stopped` said so.
        """
        self._started = time.perf_counter()
        # No process measures, and so writes, before all have seen what was measured before: they would do different things.
        self.engine.fabric.barrier()
        self._newest = self._measured()
        self.engine.fabric.barrier()
        if self.step == 0 and self._newest is None:
            self._newest = self._measure()
        self._speed.start()
        for x, y in self._batches():
            tick = time.perf_counter()
            done = self.step % self.per_epoch * self.config.batch
            rows = min(self.config.batch, len(self.data.train) - done)
            self.engine.begin(self.step, rows, self.per_epoch)
            losses = self.networks.learn(x, y, self._check)
            self._loss_sum += losses.to(self._loss_sum)
            self._loss_count += y.shape[0 if isinstance(self.networks.seed, int) else 1]
            self._speed.rows += rows * self.count
            self._durations.append(time.perf_counter() - tick)
            self.step += 1
            if self.engine.scheduler is not None and self.step % self.per_epoch == 0:
                self.engine.scheduler.step()
            if self._due(self.config.test_every) or self._aligns():
                self._newest = self._measure()
                self._keep_best(run)
                self._speed.start()
            watcher(self.step, self.steps, self._mean())
            if self._due(self.config.checkpoint_every) and self.step < self.steps:
                self._save(run)
            if stopped() and self.step < self.steps:
                self._save(run)
                raise Interrupted(f"stopped at step {self.step} of {self.steps}; the run in {run.path} can be resumed")
        if self._newest is None:  # A loss of power may leave the last checkpoint without the line before it.
            self._newest = self._measure()
        self._save(run)

    def _batches(self) -> Iterator[Batch]:
        """Batches from the present step on, on the device."""
        fabric = self.engine.fabric
        while self.step < self.steps:
            epoch, done = divmod(self.step, self.per_epoch)
            yield from self.data.train.batches(
                self.config.batch,
                self.networks.seed,
                epoch,
                done,
                part=(fabric.global_rank, fabric.world_size),
                device=fabric.device,
            )

    def _check(self, losses: Tensor) -> None:
        """Note which networks' mean losses [networks] are not finite."""
        # On a GPU every look waits for the device.
        if losses.device.type != "cpu" and self.step % 50:
            return
        for number, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                self.failures.note(number, f"loss became {loss}", self.step + 1)
        self.failures.leave_some()

    def _tested(self) -> tuple[Tested, list[int]]:
        """Outputs for all splits but the training split, and the networks of which they are to be counted.

        Networks that have become infinite or not a number fail here: the loss is looked at before a step, so it never shows what
        the last one did, and on a GPU only now and then. Only before the first step may outputs be so: batch norm that has
        seen no data yet lets those of deep networks grow beyond every bound.
        """
        tested = {role: self.networks.outputs(one) for role, one in self.data.splits.items() if role != "train"}
        (outputs, labels), finite = tested["test"], self.networks.finite()
        counted = []
        for number in self.failures.going:
            wrong = not_finite(outputs[number], self.engine.criterion(outputs[number], labels))
            loss = float(self._loss_sum[number])
            if not finite[number]:
                self.failures.note(number, "weights are infinite or nan", self.step)
            elif wrong and (
                self.step or any(one.isnan().any() for one in self.networks.learners()[number].model.buffers())
            ):
                self.failures.note(number, wrong, self.step)
            elif wrong:
                warnings.warn(f"{wrong} before the first step, so nothing is measured there", stacklevel=2)
            elif not math.isfinite(loss):
                self.failures.note(number, f"loss became {loss} since the last test, seen", self.step)
            else:
                counted.append(number)
        self.failures.leave_some()
        return tested, counted

    def _due(self, every: int | None) -> bool:
        return self.step == self.steps or self.step % (every or self.per_epoch) == 0

    def _aligns(self) -> bool:
        return self.config.align_every != 0 and (self.step == 0 or self._due(self.config.align_every))

    def _measured(self) -> dict[int, dict[str, Any]] | None:
        """What has been measured at the present step already, before the run was stopped."""
        found: dict[int, dict[str, Any]] = {}
        for number in self.failures.going:
            lines = reversed(self.metrics[number].read())
            line = next((line for line in lines if line["step"] == self.step), None)
            if line is None:
                return None
            found[number] = line
        return found

    def _measure(self) -> dict[int, dict[str, Any]]:
        """Test error and, where due, alignment of every network, written as a line of its metrics."""
        speed = self._speed.taken()
        tested, counted = self._tested()
        learners = self.networks.learners() if self._aligns() else [None] * self.count
        found = {number: {**self._line(number, tested, learners[number]), **speed} for number in counted}
        self._loss_sum.zero_()
        self._loss_count = 0
        if self.engine.fabric.is_global_zero:
            for number, line in found.items():
                self.metrics[number].append(line)
        return found

    def _line(self, number: int, tested: Tested, learner: Learner | None) -> dict[str, Any]:
        """One network's measurement, from what `_tested` gave and its loss since the last one."""
        line: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.per_epoch,
            "seconds": round(self._seconds, 3),
            "train_loss": float(self._loss_sum[number]) / self._loss_count if self._loss_count else None,
        }
        for role, (outputs, labels) in tested.items():
            found = scores(self.engine.criterion, outputs[number], labels)
            line |= {f"{role}_{name}": value for name, value in found.items()}
        line["learning_rate"] = self.engine.rates.after(self.step, self.per_epoch)
        if learner is not None:
            line["alignment"] = aligned(learner, self.data.test, self.engine)
        return line

    def _mean(self) -> dict[str, Any] | None:
        """The newest measurement for a watcher: the first network's, with the mean test error of all."""
        lines = list((self._newest or {}).values())
        return {**lines[0], "test_error": statistics.fmean(line["test_error"] for line in lines)} if lines else None

    @property
    def _seconds(self) -> float:
        """A network's share of the time that the run has taken, with what came before it was resumed."""
        return (self._before + time.perf_counter() - self._started) / self.count

    def results(self) -> dict[int, dict[str, Any]]:
        """Number -> result of every network that has not failed, once the last step is taken."""
        assert self._newest is not None
        tested, counted = self._tested()
        outputs, labels = tested["test"]
        step_ms = round(1000 * statistics.median(self._durations) / self.count, 4) if self._durations else None
        found = {}
        for number in counted:
            lines = self.metrics[number].read()
            found[number] = {
                "test_error": error_rate(outputs[number], labels),
                "test_loss": self._newest[number]["test_loss"],
                "steps": self.step,
                "epochs": self.config.epochs,
                "seconds": round(self._seconds, 3),
                "step_ms": step_ms,
                "alignment": next((line["alignment"] for line in reversed(lines) if "alignment" in line), None),
                "predictions": [] if labels.dim() > 1 else outputs[number, :KEPT_PREDICTIONS].argmax(1).tolist(),
                **{
                    key: one
                    for key, one in self._newest[number].items()
                    if key.startswith("validation") or "top5" in key or "bits" in key
                },
                **({"splits": self.data.tested} if self.data.tested != {"test": "split 'test'"} else {}),
                **({} if (best := self._best.line) is None else {"best": best}),
            }
        return found

    def states(self) -> list[dict[str, Any]]:
        """The content of each network's own checkpoint."""
        scheduler = self.engine.scheduler
        return [
            {
                "step": self.step,
                "seconds": self._seconds,
                "scheduler": None if scheduler is None else scheduler.state_dict(),
                "loss": [float(loss), self._loss_count],
                **own,
            }
            for loss, own in zip(self._loss_sum, self.networks.states(), strict=True)
        ]

    def _keep_best(self, run: RunFolder) -> None:
        if self.engine.fabric.is_global_zero and self._best.reached(self.step):
            state = self.states()[0]
            run.save_best({key: state[key] for key in OF_A_NETWORK if key in state}, self.seals())

    def _save(self, run: RunFolder) -> None:
        run.skipped.note(self.data.splits.values())
        if self.engine.fabric.is_global_zero:
            with self._speed.paused():
                states = self.states()
                run.save(states[0] if self.count == 1 else {"runs": states, "failed": self.failed}, self.seals())

    def seals(self) -> list[Seal]:
        """How config and metrics of each network are now, for a checkpoint to hold."""
        data = {"shape": list(self.data.shape), "classes": self.data.classes}
        return [
            Seal(one.asdict(), log.seal, data) for one, log in zip(self.networks.configs, self.metrics, strict=True)
        ]

    def load(self, state: dict[str, Any], seals: Sequence[Seal] | None = None) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            CheckpointError: if it is of another run, or of this one under other settings.
        """
        these = "this run" if self.count == 1 else "these runs"
        for config, seal in zip(self.networks.configs, seals or [], strict=seals is not None):
            seal.check(config.asdict(), these)
        try:
            states = [state] if self.count == 1 else state["runs"]
            self.networks.load(states)
            if self.engine.scheduler is not None:
                self.engine.scheduler.load_state_dict(states[0]["scheduler"])
            self.step, self._before = states[0]["step"], states[0]["seconds"] * self.count
            if type(self.step) is not int or not 0 <= self.step <= self.steps:
                raise ValueError(f"it is of step {self.step}, and the run has {self.steps} steps")
            self._loss_sum.copy_(torch.tensor([own["loss"][0] for own in states], dtype=torch.float64))
            self._loss_count = states[0]["loss"][1]
            self.failed.update(state.get("failed", {}))
        except Exception as error:  # Of whatever a forged state holds in place of its parts.
            raise CheckpointError(
                f"the checkpoint does not fit {these}: {error}; delete the folder to start anew"
            ) from error
