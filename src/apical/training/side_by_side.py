"""The runs of one rule from several seeds, trained in one pass as copies side by side (see `replicate`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.attaching.attach import learner_of
from apical.data import ImageData
from apical.data.images import Split
from apical.learner import Learner
from apical.replicas.replicas import Replicas
from apical.replicas.replicate import replicate
from apical.replicas.transfer import catch_up
from apical.rules import Rule
from apical.training.config import TrainConfig
from apical.training.networks import Networks, finite
from apical.training.run_folder import RunFolder
from apical.training.session import NonFiniteLossError, Session, Watcher
from apical.training.setup import Engine, make
from apical.training.steps.gradients import parts
from apical.training.stopping import stoppable
from apical.training.train import placed


def train_together(
    configs: Sequence[TrainConfig],
    folder: RunFolder,
    runs: Sequence[RunFolder],
    *,
    data: ImageData,
    watcher: Watcher | None = None,
    captured: bool = True,
) -> dict[int, str]:
    """Train runs that differ in their seeds only, in one pass, or go on with them where they were stopped.

    Each learns what `train` would teach it, to rounding, and leaves a folder like its. A run whose loss is not finite ends
    there; the others go on as they would have without it. What was stopped ends bit-identical to what was not. A run whose
    folder or result was deleted is trained again, with the others, which it needs to end as it did.

    Args:
        configs: one for each run. runs: their folders.
        folder: for what they have in common: checkpoints, until all runs are done, and which runs failed.
        captured: on a GPU, take steps as CUDA graphs where that can be.

    Returns:
        Seed -> why the run failed.

    Raises:
        Interrupted: Ctrl-C; call again to go on.
        ValueError: bad config, data, folder or checkpoint.
    """
    shared = {**configs[0].asdict(), "seed": [config.seed for config in configs]}
    again = folder.has_run
    if again:
        folder.reopen(shared, configs[0].later())
    if folder.result is not None and _lost(folder.result, configs, runs):
        folder.unfinish()
    if folder.result is None:
        session = Session(SideBySide(configs, data, captured=captured), data, [run.metrics for run in runs])
        # Beyond a checkpoint, a run that is not there would lack what was measured before.
        state, seals = folder.restore_all() if again and all(run.has_run for run in runs) else (None, None)
        if state is not None:
            session.load(state, seals)
        if not again:
            folder.start(shared)
        with ExitStack() as held:
            for number, (config, run) in enumerate(zip(configs, runs, strict=True)):
                if again and run.has_run:
                    run.reopen(config.asdict(), config.later())
                    held.enter_context(run.held())
                    run.metrics.cut(None if state is None else session.step, seals[number].metrics if seals else None)
                else:
                    run.start(config.asdict())
                    held.enter_context(run.held())
            stopped = held.enter_context(stoppable())
            held.enter_context(suppress(NonFiniteLossError))
            held.enter_context(placed(session))
            session.go(folder, stopped, watcher or (lambda *_: None))
            states, seals = session.states(), session.seals()
            for number, result in session.results().items():
                runs[number].save(_compact(states[number]), [seals[number]])
                runs[number].finish(result)
        failed = {str(configs[number].seed): reason for number, reason in session.failed.items()}
        folder.finish(
            {"failed": failed},
            {str(configs[number].seed): runs[number].metrics.seal["sha256"] for number in session.failed},
        )
        folder.forget()
    assert folder.result is not None
    return {int(seed): reason for seed, reason in folder.result["failed"].items()}


def _lost(result: dict[str, Any], configs: Sequence[TrainConfig], runs: Sequence[RunFolder]) -> bool:
    """Whether a run that has not failed is without its result."""
    return any(
        run.result is None and str(config.seed) not in result["failed"]
        for config, run in zip(configs, runs, strict=True)
    )


class SideBySide(Networks):
    """Networks of one rule from several seeds, in one pass.

    Attributes:
        replicas: the copies in training. singles: the networks they were made of, for what is asked of each on its own.
    """

    singles: list[Learner]
    replicas: Replicas

    def __init__(self, configs: Sequence[TrainConfig], data: ImageData, *, captured: bool = True) -> None:
        self.configs, self.seed = list(configs), [config.seed for config in configs]

        def build(rule: Rule) -> nn.Module:
            made = [make(config, rule, config.seed, data) for config in self.configs]
            self.singles = [learner for _, learner in made]
            self.replicas = copies_of([model for model, _ in made], data)
            return self.replicas.model

        self.engine = Engine(self.configs[0], build, captured=captured)
        self.learner = learner_of(self.replicas)
        weight = next(self.replicas.model.parameters())
        for single in self.singles:
            single.model.to(device=weight.device, dtype=weight.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        """Outputs [N, copies, classes] for batches [copies, N, *]."""
        return self.engine.outputs(self.replicas.fold(x)).unflatten(1, (len(self.configs), -1))

    @override
    def learn(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        x = x.to(self.engine.dtype)
        self.engine.net.train()
        return self.engine.learn(self._step, x, y, check)

    def _step(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        engine, sums = self.engine, []
        for own, its, last in parts(x, y, self.configs[0].accumulate, y.shape[1], dim=1):
            outputs = self._forward(own)
            losses = engine.loss(outputs.flatten(0, 1), its.t().flatten()).view(outputs.shape[:2])
            whole = its.shape == y.shape
            means = losses.mean(0) if whole else losses.sum(0) / y.shape[1]
            check(means.detach())
            # A sum, so that the gradient of each copy is that of its own mean.
            engine.fabric.backward(means.sum())
            sums.append(losses.detach().sum(0))
            if last or self.learner.phases.cuts:
                self.learner.adapt(own, its, engine.loss)
        engine.step()
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    @override
    @torch.no_grad()
    def outputs(self, split: Split) -> tuple[Tensor, Tensor]:
        self.engine.net.eval()
        copies = len(self.configs)
        batches = split.in_order(max(1, 1000 // copies), device=self.engine.fabric.device)
        outputs, labels = zip(
            *((self._forward(x.expand(copies, *x.shape)).float().cpu(), y.cpu()) for x, y in batches), strict=True
        )
        return torch.cat(outputs).transpose(0, 1), torch.cat(labels)

    @override
    def finite(self) -> list[bool]:
        states = self.replicas.states()
        return [finite(single.model, state) for single, state in zip(self.singles, states, strict=True)]

    @override
    def learners(self) -> list[Learner]:
        self._apart()
        return self.singles

    def _apart(self) -> list[dict[str, Tensor]]:
        """Bring the single networks up to date; their states."""
        states = self.replicas.states()
        for single, state, generator in zip(self.singles, states, self.replicas.generators, strict=True):
            single.model.load_state_dict(state)
            single.generator.set_state(generator.get_state())
            catch_up(single, self.learner, lambda units: units // len(self.configs))
        return states

    @override
    def states(self) -> list[dict[str, Any]]:
        optimizer = self.engine.optimizer.state_dict()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return [
            {
                "model": model,
                "optimizer": {**optimizer, "state": own},
                "learner": single.state_dict(),
                # Nothing here draws from the global generator, so it is as the run alone would have left it.
                "random": torch.Generator().manual_seed(self.engine.global_seed(config.seed)).get_state(),
                "random_cuda": cuda,
            }
            for model, own, single, config in zip(
                self._apart(),
                self.replicas.optimizer_states(optimizer["state"]),
                self.singles,
                self.configs,
                strict=True,
            )
        ]

    @override
    def load(self, states: Sequence[dict[str, Any]]) -> None:
        self.replicas.load_states([own["model"] for own in states])
        together = self.replicas.optimizer_state([own["optimizer"]["state"] for own in states])
        self.engine.rates.restore({**states[0]["optimizer"], "state": together}, self.engine.fabric.device)
        for single, own in zip(self.singles, states, strict=True):
            single.load_state_dict(own["learner"])
        for single, generator in zip(self.singles, self.replicas.generators, strict=True):
            generator.set_state(single.generator.get_state())
        catch_up(self.learner, self.singles[0], lambda units: units * len(self.configs))


def copies_of(models: Sequence[nn.Module], data: ImageData) -> Replicas:
    """Attached networks side by side, once they have been seen to compute what they do alone."""
    x, _ = data.test.first(2)
    return replicate(models, example_input=x.to(next(models[0].parameters()).dtype))


def _compact(state: Any) -> Any:
    """Without the memory that views of one copy share with those of the others."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _compact(value) for key, value in state.items()}
    return [_compact(value) for value in state] if isinstance(state, list) else state
