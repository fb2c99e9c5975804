"""The networks that a session trains: what it asks of them, which have failed, and one network of one rule and one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from apical.data import ImageData
from apical.data.images import Split
from apical.learner import Learner
from apical.networks.noisy import NoisyInput
from apical.rules import Rule
from apical.training.config import TrainConfig
from apical.training.setup import Engine, make
from apical.training.steps.average import Average
from apical.training.steps.gradients import parts


class Networks(Protocol):
    """The networks that a session trains: one, or several side by side that differ in their seeds only.

    Attributes:
        configs: one for each network.
        seed: of the order of samples: one, or one for each network; batches come from a `Split` accordingly.
        engine: device, optimizer, schedule and loss, which they have in common.
    """

    configs: Sequence[TrainConfig]
    seed: int | Sequence[int]
    engine: Engine

    def learn(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        """Take one step on a batch. `check` is given the mean losses [networks] before anything learns from them.

        Returns:
            Losses summed over the batch, [networks].
        """
        ...

    def outputs(self, split: Split) -> tuple[Tensor, Tensor]:
        """Outputs [networks, N, *, classes] for all samples of a split, in eval mode, and their labels [N, *]; on the CPU."""
        ...

    def finite(self) -> list[bool]:
        """Whether all of each network's weights and feedback are finite."""
        ...

    def learners(self) -> Sequence[Learner]:
        """Each network's learner as it is now, for what is measured of each on its own."""
        ...

    def states(self) -> list[dict[str, Any]]:
        """Each network's own part of a checkpoint: model, optimizer, learner, random."""
        ...

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Go back to what `states` gave."""
        ...


class NonFiniteLossError(RuntimeError):
    """An error of a run whose loss, outputs or weights became infinite or not a number.

    The usual remedy is a smaller learning rate.

    >>> issubclass(NonFiniteLossError, RuntimeError)
    True
    """


class Failures:
    """The networks of a session that have failed, and why.

    Args:
        configs: one for each network. per_epoch: steps in an epoch.

    Attributes:
        told: network -> what became infinite or not a number, and when.

    >>> failures = Failures([TrainConfig(seed=0), TrainConfig(seed=1)], per_epoch=23)
    >>> failures.note(1, "loss became nan", step=24)
    >>> failures.going
    [0]
    >>> failures.told[1]
    "loss became nan at step 24 (epoch 2) of rule 'fa' with seed 1; a smaller learning rate than 0.05 is the usual remedy"
    """

    def __init__(self, configs: Sequence[TrainConfig], per_epoch: int) -> None:
        self._configs, self._per_epoch = configs, per_epoch
        self.told: dict[int, str] = {}

    @property
    def going(self) -> list[int]:
        """Numbers of the networks that have not failed."""
        return [number for number in range(len(self._configs)) if number not in self.told]

    def note(self, number: int, what: str, step: int) -> None:
        """Note that a network fails at a step, unless it has done so before."""
        config, epoch = self._configs[number], max(step - 1, 0) // self._per_epoch + 1
        remedy = (
            f"a smaller learning rate than {config.rate:g} is the usual remedy"
            if step
            else "so they are before anything is learned: look at the network's initial weights and buffers"
        )
        told = f"{what} at step {step} (epoch {epoch}) of rule '{config.rule}' with seed {config.seed}; {remedy}"
        self.told.setdefault(number, told)

    def leave_some(self) -> None:
        """Raise a NonFiniteLossError if no network is left."""
        if not self.going:
            raise NonFiniteLossError("; ".join(self.told.values()))


def not_finite(outputs: Tensor, losses: Tensor) -> str:
    """What is infinite or nan of outputs [N, classes] and their losses [N], in words; empty if nothing is.

    >>> not_finite(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), torch.zeros(2))
    'outputs for 1 of 2 test images are nan'
    """
    bad = int((~outputs.isfinite().all(-1)).sum())
    if bad:
        return (
            f"outputs for {bad:,} of {len(outputs):,} test images are {'nan' if outputs.isnan().any() else 'infinite'}"
        )
    loss = float(losses.mean())
    return "" if math.isfinite(loss) else f"test loss is {loss}"


def finite(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether all weights and feedback in a state of `model` are finite. Masks and statistics may hold what they like."""
    names = {name for name, _ in model.named_parameters()}
    seen = [t.isfinite().all() for name, t in state.items() if name in names or name.split(".")[-1] == "feedback"]
    return bool(torch.stack(seen).all()) if seen else True


class OneNetwork(Networks):
    """A network with its learner, made from nothing but its config.

    Attributes:
        learner: of the network in training. average: of its weights, which is what is tested, where the config asks for it.
    """

    learner: Learner

    def __init__(self, config: TrainConfig, data: ImageData, *, captured: bool = True) -> None:
        self.configs, self.seed = [config], config.seed

        def build(rule: Rule) -> nn.Module:
            model, self.learner = make(config, rule, config.seed, data)
            return model

        self.engine = Engine(config, build, captured=captured)
        self.noise = NoisyInput(config.input_noise) if config.input_noise else nn.Identity()
        self.average = Average(self.learner, config.ema) if config.ema else None

    @override
    def learn(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        x = self.noise(self.engine.taken(x))
        self.engine.net.train()
        losses = self.engine.learn(self._step, x, y, check)
        if self.average is not None:
            self.average.update()
        return losses

    def _step(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        engine, sums = self.engine, []
        for own, its, last in parts(x, y, self.configs[0].accumulate, engine.smallest):
            with engine.adding(last):
                losses = engine.loss(engine.outputs(own), its)
                loss = engine.mean(losses)
                check(loss.detach()[None])
                engine.fabric.backward(loss)
            sums.append(losses.detach().sum()[None])
            # Feedback learns in one phase a step. Gradients that a phase fills in are of one part, as all others are.
            if last or self.learner.phases.cuts:
                self.learner.adapt(own, its, engine.loss)
        engine.step()
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    @override
    @torch.no_grad()
    def outputs(self, split: Split) -> tuple[Tensor, Tensor]:
        net = self.engine.net.eval()
        batches = split.in_order(split.at_once, device=self.engine.fabric.device)
        with nullcontext() if self.average is None else self.average.in_place():
            outputs, labels = zip(*((self._tested(net, x).float().cpu(), y.cpu()) for x, y in batches), strict=True)
        return torch.cat(outputs)[None], torch.cat(labels)

    def _tested(self, net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return (net(x) + net(x.flip(-1))) / 2 if self.configs[0].mirrored else net(x)

    @override
    def finite(self) -> list[bool]:
        return [finite(self.learner.model, self.learner.model.state_dict())]

    @override
    def learners(self) -> list[Learner]:
        return [self.learner]

    @override
    def states(self) -> list[dict[str, Any]]:
        return [
            {
                "model": self.learner.model.state_dict(),
                "optimizer": self.engine.optimizer.state_dict(),
                "learner": self.learner.state_dict(),
                "random": torch.get_rng_state(),
                "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                **({} if self.average is None else {"average": self.average.state_dict()}),
            }
        ]

    @override
    def load(self, states: Sequence[dict[str, Any]]) -> None:
        (state,) = states
        self.learner.model.load_state_dict(state["model"])
        self.engine.rates.restore(state["optimizer"], self.engine.fabric.device)
        self.learner.load_state_dict(state["learner"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
