"""The runs of one rule from several seeds, trained in one pass as copies side by side (see `replicate`)."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.attaching.attach import learner_of
from apical.data import ImageData, Split
from apical.learner import Learner
from apical.replicas.replicas import Replicas
from apical.replicas.replicate import replicate
from apical.replicas.transfer import catch_up
from apical.rules import Rule
from apical.training.checkpoint import CheckpointError
from apical.training.config import TrainConfig
from apical.training.run_folder import RunFolder
from apical.training.session import NonFiniteLossError, Session, Watcher
from apical.training.setup import make
from apical.training.train import stoppable


def train_together(
    configs: Sequence[TrainConfig],
    folder: RunFolder,
    runs: Sequence[RunFolder],
    *,
    data: ImageData,
    watcher: Watcher | None = None,
) -> dict[int, str]:
    """Train runs that differ in their seeds only, in one pass, or go on with them where they were stopped.

    Each learns what `train` would teach it, to rounding, and leaves a folder like its. A run whose loss is not finite ends
    there; the others go on as they would have without it. What was stopped ends bit-identical to what was not. A run whose
    folder or result was deleted is trained again, with the others, which it needs to end as it did.

    Args:
        configs: one for each run. runs: their folders.
        folder: for what they have in common: checkpoints, until all runs are done, and which runs failed.

    Returns:
        Seed -> why the run failed.

    Raises:
        Interrupted: Ctrl-C; call again to go on.
        ValueError: bad config, data, folder or checkpoint.
    """
    shared = {**dataclasses.asdict(configs[0]), "seed": [config.seed for config in configs]}
    again = folder.has_run
    if again:
        folder.reopen(shared)
    if folder.result is not None and _lost(folder.result, configs, runs):
        folder.unfinish()
    if folder.result is None:
        session = Together(configs, data, runs)
        # Beyond a checkpoint, a run that is not there would lack what was measured before.
        state = folder.restore() if again and all(run.has_run for run in runs) else None
        if state is not None:
            session.load_state(state)
        if not again:
            folder.start(shared)
        for config, run in zip(configs, runs, strict=True):
            if again and run.has_run:
                run.reopen(config.asdict())
                run.metrics.cut(None if state is None else session.step)
            else:
                run.start(config.asdict())
        try:
            with stoppable() as stopped:
                session.go(folder, stopped, watcher or (lambda *_: None))
        except NonFiniteLossError:
            session.close(folder)
    assert folder.result is not None
    return {int(seed): reason for seed, reason in folder.result["failed"].items()}


def _lost(result: dict[str, Any], configs: Sequence[TrainConfig], runs: Sequence[RunFolder]) -> bool:
    """Whether a run that has not failed is without its result."""
    return any(
        run.result is None and str(config.seed) not in result["failed"]
        for config, run in zip(configs, runs, strict=True)
    )


class Together(Session):
    """Everything that changes while copies go on side by side.

    Attributes:
        replicas: the copies. singles: the networks they were made of, for what is asked of each on its own.
        failed: copy -> why, for copies whose loss became infinite or not a number.
    """

    replicas: Replicas
    singles: list[Learner]

    def __init__(self, configs: Sequence[TrainConfig], data: ImageData, runs: Sequence[RunFolder]) -> None:
        self.configs, self.runs = list(configs), list(runs)
        super().__init__(configs[0], data)
        self.copies = len(self.configs)
        self.loss_sum = torch.zeros(self.copies, dtype=torch.float64)
        self.failed: dict[int, str] = {}
        weight = next(self.replicas.model.parameters())
        for single in self.singles:
            single.model.to(device=weight.device, dtype=weight.dtype)

    @override
    def build(self, rule: Rule) -> nn.Module:
        made = [make(config, rule, config.seed, self.data) for config in self.configs]
        self.singles = [learner for _, learner in made]
        self.replicas = copies_of([model for model, _ in made], self.data)
        self.learner = learner_of(self.replicas)
        return self.replicas.model

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """An epoch's batches of indices [N, copies]."""
        own = [self._batches_of(config.seed, epoch) for config in self.configs]
        return (torch.stack(indices, 1) for indices in zip(*own, strict=True))

    @override
    def learn(self, index: Tensor) -> None:
        x, y = self.data.train.batch(index.flatten(), device=self.fabric.device)
        x = x.to(self.dtype).unflatten(0, index.shape).transpose(0, 1)
        self.net.train()
        outputs = self.net(self.replicas.fold(x)).unflatten(1, (self.copies, -1))
        losses = self.criterion(outputs.flatten(0, 1), y).view(index.shape)
        means = losses.mean(0)
        if self.looks(means):
            self._note_failures(means.tolist())
        # A sum, so that the gradient of each copy is that of its own mean.
        self.fabric.backward(means.sum())
        self.learner.adapt(x, y.view(index.shape).t(), self.criterion)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss_sum += losses.detach().sum(0).to(self.loss_sum)
        self.loss_count += len(losses)

    def _note_failures(self, losses: list[float]) -> None:
        for copy, loss in enumerate(losses):
            if not math.isfinite(loss) and copy not in self.failed:
                self.failed[copy] = self.fault(loss, self.configs[copy])
        if len(self.failed) == self.copies:
            raise NonFiniteLossError("; ".join(self.failed.values()))

    def going(self) -> list[int]:
        """Copies that have not failed."""
        return [copy for copy in range(self.copies) if copy not in self.failed]

    @override
    def measured(self, run: RunFolder) -> dict[str, Any] | None:
        found = [Session.measured(self, self.runs[copy]) for copy in self.going()]
        return _mean([line for line in found if line is not None]) if all(found) else None

    def measure(self, run: RunFolder) -> dict[str, Any]:
        """Every copy's test error and, where due, alignment; a line in the metrics.jsonl of each run. The mean over copies."""
        outputs = self.outputs(self.data.test)
        if self.aligns():
            self._apart()
        lines = [self.line(outputs[copy], self.loss_sum[copy], self.singles[copy]) for copy in self.going()]
        self.loss_sum.zero_()
        self.loss_count = 0
        for copy, line in zip(self.going(), lines, strict=True):
            self.runs[copy].metrics.append(line)
        return _mean(lines)

    @torch.no_grad()
    def outputs(self, split: Split) -> Tensor:
        """Each copy's outputs [copies, N, classes] for all samples of a split, on the CPU."""
        self.net.eval()
        parts = []
        for index in torch.arange(len(split)).split(max(1, 1000 // self.copies)):
            x, _ = split.batch(index, device=self.fabric.device)
            found = self.net(self.replicas.fold(x.expand(self.copies, *x.shape)))
            parts.append(found.unflatten(1, (self.copies, -1)).transpose(0, 1).float().cpu())
        return torch.cat(parts, 1)

    @property
    def seconds(self) -> float:
        """A copy's share of the time."""
        return super().seconds / self.copies

    def _apart(self) -> list[dict[str, Any]]:
        """Bring the single networks up to date; what their checkpoints would hold of them."""
        states = self.replicas.states()
        for single, state, generator in zip(self.singles, states, self.replicas.generators, strict=True):
            single.model.load_state_dict(state)
            single.generator.set_state(generator.get_state())
            catch_up(single, self.learner, lambda units: units // self.copies)
        return [
            {"model": state, "learner": single.state_dict()} for single, state in zip(self.singles, states, strict=True)
        ]

    def finish(self, run: RunFolder, newest: dict[str, Any]) -> dict[str, Any]:
        """Write every run's last checkpoint and result."""
        outputs, states = self.outputs(self.data.test), self.states()
        self.save(run)
        for copy in self.going():
            own = self.runs[copy]
            lines = own.metrics.read()
            result = self.result(outputs[copy], lines[-1], lines)
            if self.durations:
                result["step_ms"] = round(1000 * statistics.median(self.durations) / self.copies, 4)
            own.save(_compact(states[copy]))
            own.finish(result)
        self.close(run)
        return newest

    def close(self, run: RunFolder) -> None:
        """Write which runs failed; there is nothing more to train."""
        run.finish({"failed": {str(self.configs[copy].seed): reason for copy, reason in self.failed.items()}})
        run.forget()

    def states(self) -> list[dict[str, Any]]:
        """What the checkpoint of each copy's own run would hold."""
        optimizer = self.optimizer.state_dict()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return [
            {
                "step": self.step,
                "seconds": self.seconds,
                "optimizer": {**optimizer, "state": own},
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "loss": [float(self.loss_sum[copy]), self.loss_count],
                # Nothing here draws from the global generator, so it is as the run alone would have left it.
                "random": torch.Generator().manual_seed(self.global_seed(self.configs[copy])).get_state(),
                "random_cuda": cuda,
                **apart,
            }
            for copy, (apart, own) in enumerate(
                zip(self._apart(), self.replicas.optimizer_states(optimizer["state"]), strict=True)
            )
        ]

    @override
    def save(self, run: RunFolder) -> None:
        run.save({"runs": self.states(), "failed": self.failed})

    @override
    def load_state(self, state: dict[str, Any]) -> None:
        try:
            runs = state["runs"]
            self.replicas.load_states([own["model"] for own in runs])
            together = self.replicas.optimizer_state([own["optimizer"]["state"] for own in runs])
            self.optimizer.load_state_dict({**runs[0]["optimizer"], "state": together})
            if self.scheduler is not None:
                self.scheduler.load_state_dict(runs[0]["scheduler"])
            for single, own in zip(self.singles, runs, strict=True):
                single.load_state_dict(own["learner"])
            for single, generator in zip(self.singles, self.replicas.generators, strict=True):
                generator.set_state(single.generator.get_state())
            catch_up(self.learner, self.singles[0], lambda units: units * self.copies)
            self.step, self.before = runs[0]["step"], runs[0]["seconds"] * self.copies
            self.loss_sum.copy_(torch.tensor([own["loss"][0] for own in runs], dtype=torch.float64))
            self.loss_count = runs[0]["loss"][1]
            self.failed = dict(state["failed"])
        except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit these runs: {error}; delete the folder to start anew"
            ) from error


def copies_of(models: Sequence[nn.Module], data: ImageData) -> Replicas:
    """Attached networks side by side, once they have been seen to compute what they do alone."""
    x, _ = data.test.batch(torch.arange(min(2, len(data.test))))
    return replicate(models, example_input=x.to(next(models[0].parameters()).dtype))


def _mean(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {**lines[0], "test_error": statistics.fmean(line["test_error"] for line in lines)} if lines else {}


def _compact(state: Any) -> Any:
    """Without the memory that views of one copy share with those of the others."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _compact(value) for key, value in state.items()}
    return [_compact(value) for value in state] if isinstance(state, list) else state
