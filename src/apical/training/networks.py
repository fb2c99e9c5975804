"""The networks that a session trains: what it asks of them, and one network of one rule and one seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def outputs(self, split: Split) -> Tensor:
        """Outputs [networks, N, classes] for all samples of a split, in eval mode, on the CPU."""
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


class OneNetwork(Networks):
    """A network with its learner, made from nothing but its config.

    Attributes:
        learner: of the network in training.
    """

    learner: Learner

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.configs, self.seed = [config], config.seed

        def build(rule: Rule) -> nn.Module:
            model, self.learner = make(config, rule, config.seed, data)
            return model

        self.engine = Engine(config, build)
        self.noise = NoisyInput(config.input_noise) if config.input_noise else nn.Identity()

    @override
    def learn(self, x: Tensor, y: Tensor, check: Callable[[Tensor], None]) -> Tensor:
        x = self.noise(x.to(self.engine.dtype))
        self.engine.net.train()
        losses = self.engine.criterion(self.engine.net(x), y)
        loss = self.engine.mean(losses)
        check(loss.detach()[None])
        self.engine.fabric.backward(loss)
        self.learner.adapt(x, y, self.engine.criterion)
        self.engine.step()
        return losses.detach().sum()[None]

    @override
    @torch.no_grad()
    def outputs(self, split: Split) -> Tensor:
        net = self.engine.net.eval()
        parts = [net(x).float().cpu() for x, _ in split.in_order(1000, device=self.engine.fabric.device)]
        return torch.cat(parts)[None]

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
            }
        ]

    @override
    def load(self, states: Sequence[dict[str, Any]]) -> None:
        (state,) = states
        self.learner.model.load_state_dict(state["model"])
        self.engine.optimizer.load_state_dict(state["optimizer"])
        self.learner.load_state_dict(state["learner"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
