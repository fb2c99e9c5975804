"""Training of image classifiers by a printed recipe: SGD on minibatches, a rate by epochs, angles of every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import apical
from apical import distributed
from apical.attaching.attach import learner_of
from apical.data import ImageData, Split
from apical.networks import build
from apical.papers.classifiers.workers import Workers, shared
from apical.papers.course import course
from apical.papers.experiment import Task
from apical.papers.record import Curve
from apical.replicas.replicas import Replicas
from apical.replicas.transfer import catch_up
from apical.training.side_by_side import copies_of

PROBES = 256
"""Test images on which angles are measured."""
MATRIX, DELTA = "matrix angle, ", "delta angle, "
"""What the names of curves begin with; a layer's name follows."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns. Epochs are those of a whole run; a shortened one shortens them all in proportion.

    Args:
        epochs: over the training images. batch: images of a minibatch, over all workers together. rate: of SGD at its highest.
        momentum, nesterov: of SGD. decay: L2 on all parameters, feedback that learns with the weights included.
        mirrored: first epochs in which feedback learns alone, in a phase of its own. warmup: epochs after them in which the rate
            rises linearly from 0. drops: epochs after which the rate is divided by 10.
        workers: parts of each minibatch that pass one after the other, as if each were at a worker of its own: gradients and
            running statistics are averaged over them, batch normalization sees each part alone. Several processes share them.
        init: of the weights, where it is not the network's own. bfloat16: products in bfloat16, weights in single precision.

    >>> recipe = Recipe(epochs=90, batch=2048, rate=0.8, warmup=6, drops=(32, 62, 82))
    >>> [round(recipe.rate_at(epoch), 4) for epoch in (0, 3, 6, 31.9, 32, 62, 89)]
    [0.0, 0.4, 0.8, 0.8, 0.08, 0.008, 0.0008]
    """

    epochs: int
    batch: int
    rate: float
    momentum: float = 0.9
    nesterov: bool = False
    decay: float = 1e-4
    mirrored: int = 0
    warmup: int = 0
    drops: tuple[int, ...] = ()
    workers: int = 1
    init: Callable[[Tensor], Any] | None = None
    bfloat16: bool = True

    def per_epoch(self, data: ImageData) -> int:
        """The number of minibatches in an epoch, the last one smaller."""
        return math.ceil(len(data.train) / self.batch)

    def rate_at(self, epoch: float) -> float:
        """The rate of the minibatch with which this much of the epochs is over; 0 while feedback learns alone."""
        if epoch <= self.mirrored and self.mirrored:
            return 0.0
        risen = min(1.0, (epoch - self.mirrored) / self.warmup) if self.warmup else 1.0
        return self.rate * risen * 0.1 ** sum(epoch >= drop for drop in self.drops)


class ImageTraining:
    """The training of one network, or of copies of several seeds side by side.

    Args:
        network: a name in `apical.networks`. rule: with its numbers. data: see `ImageExperiment.prepared`. seeds: of each
        network. recipe: how. steps: the length of this run. angles: whether both angles of every layer are measured.

    Attributes:
        singles: a learner for each seed, brought up to date when angles are measured.
    """

    def __init__(
        self,
        network: str,
        rule: apical.Rule,
        data: ImageData,
        seeds: Sequence[int],
        recipe: Recipe,
        steps: int,
        *,
        angles: bool,
    ) -> None:
        self.data, self.seeds, self.recipe, self.steps, self.angles = data, list(seeds), recipe, steps, angles
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.singles = [self._single(network, rule, seed) for seed in seeds]
        models = [one.model for one in self.singles]
        self.model: nn.Module = models[0] if len(models) == 1 else copies_of(models, data)
        for module in (self.model, *models):
            module.to(self.device)
        self.learner = learner_of(self.model)
        self.workers = Workers(self.model, recipe.workers)
        self.dtype = next(self.model.parameters()).dtype
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=recipe.rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.decay,
        )
        self.per_epoch = recipe.per_epoch(data)
        self.wrong, self.seen = torch.zeros(len(seeds), dtype=torch.int64), 0
        self._place, self._batches = -1, iter(())

    def _single(self, network: str, rule: apical.Rule, seed: int) -> apical.Learner:
        torch.manual_seed(seed)
        model = build(network, shape=self.data.shape, classes=self.data.classes)
        if self.recipe.init is not None:
            for synapse in model.modules():
                if isinstance(synapse, nn.Conv2d | nn.Linear):
                    self.recipe.init(synapse.weight)
        changed: Any = model  # PyTorch's types leave this way of calling `to` out.
        changed.to(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(seed + 10**6)
        return apical.attach(model, shared(rule), example_input=torch.zeros(2, *self.data.shape), generator=generator)

    def course(self, task: Task) -> dict[str, Curve]:
        """Test and train error in %, and angles in degrees, by epoch; a run shorter than an epoch is measured at its end."""
        return course(
            task,
            self.steps,
            learn=self.learn,
            measure=self.measure,
            at=range(0, self.steps, self.per_epoch),
            parts={"training": self},
            x=lambda step: step / self.per_epoch,
        )

    def learn(self, step: int) -> None:
        """One minibatch for every network, in an order of its own."""
        recipe = self.recipe
        rate = recipe.rate_at((step + 1) / self.steps * recipe.epochs)
        x, y = self._batch(step)
        self.model.train()
        if rate == 0.0:
            self.learner.adapt(*self._taken(x, y), self._losses)
            return
        rows = min(recipe.batch, len(self.data.train) - step % self.per_epoch * recipe.batch)
        wrong = torch.zeros(len(self.seeds), dtype=torch.int64, device=self.device)
        for part_x, part_y in self.workers.parts(x, y):
            outputs = self.outputs(part_x)
            self._losses(outputs.flatten(0, 1), part_y.flatten()).sum().div(rows).backward()
            wrong += (outputs.detach().argmax(2) != part_y).sum(1)
        self.learner.adapt(*self._taken(x, y), self._losses)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wrong += distributed.total(wrong).cpu()
        self.seen += rows

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [copies, N, classes] for images [copies, N, C, H, W]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            outputs = self.model(x) if isinstance(self.model, Replicas) else self.model(x[0])[None]
        return outputs.to(self.dtype)

    def _taken(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A batch as the model takes it."""
        return (x, y) if isinstance(self.model, Replicas) else (x[0], y[0])

    @staticmethod
    def _losses(outputs: Tensor, labels: Tensor) -> Tensor:
        half = outputs.dtype.itemsize < 4
        return F.cross_entropy(outputs.float() if half else outputs, labels, reduction="none")

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [copies, N, C, H, W] and labels [copies, N] of a step."""
        epoch, number = divmod(step, self.per_epoch)
        if step != self._place or not number:
            self._batches = self._from(epoch, number)
        self._place = step + 1
        return next(self._batches)

    def _from(self, epoch: int, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        several = len(self.seeds) > 1
        found = self.data.train.batches(
            self.recipe.batch,
            self.seeds if several else self.seeds[0],
            epoch,
            number,
            part=self.workers.share,
            device=self.device,
        )
        found = ((x.to(self.dtype), y) for x, y in found)
        return found if several else ((x[None], y[None]) for x, y in found)

    def measure(self) -> Mapping[str, list[float]]:
        """The errors of each split, that of the minibatches since the last call, and where asked for the angles."""
        found = {"test error": self._error(self.data.test)}
        if self.data.validation is not None:
            found["validation error"] = self._error(self.data.validation)
        found["train error"] = [100 * float(one) / self.seen if self.seen else math.nan for one in self.wrong]
        self.wrong.zero_()
        self.seen = 0
        return {**found, **(self._angles() if self.angles else {})}

    @torch.no_grad()
    def _error(self, split: Split) -> list[float]:
        self.model.eval()
        wrong = torch.zeros(len(self.seeds) + 1, dtype=torch.int64, device=self.device)
        own, at_once = self._own(split), max(1, 500 // len(self.seeds))
        for x, y in own.in_order(at_once, device=self.device) if len(own) else ():
            outputs = self.outputs(x.to(self.dtype).expand(len(self.seeds), *x.shape))
            wrong[:-1] += (outputs.argmax(2) != y).sum(1)
            wrong[-1] += len(y)
        *found, seen = distributed.total(wrong).tolist()
        return [100 * one / seen for one in found]

    @staticmethod
    def _own(split: Split) -> Split:
        """What this process tests on: every n-th image, of n processes."""
        world = distributed.world()
        return split if world == 1 else split.part(torch.arange(len(split))[distributed.rank() :: world])

    def _angles(self) -> dict[str, list[float]]:
        """Both angles of every layer, in its place from the input on, for each seed."""
        if isinstance(self.model, Replicas):
            for single, state in zip(self.singles, self.model.states(), strict=True):
                single.model.load_state_dict(state)
                catch_up(single, self.learner, lambda units: units // len(self.seeds))
        x, y = self.data.test.first(PROBES, device=self.device)
        x = x.to(self.dtype)
        found: dict[str, list[float]] = {}
        for single in self.singles:
            single.model.eval()
            for name, one in apical.alignment(single, x, y, self._losses).items():
                for what, angle in ((MATRIX, one.matrix_angle), (DELTA, one.delta_angle)):
                    found.setdefault(what + name, []).append(math.nan if angle is None else angle)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The state of all that changes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": self.learner.state_dict(),
            "generators": [one.get_state() for one in self._generators],
            "counts": (self.wrong, self.seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learner.load_state_dict(state["learner"])
        for generator, own in zip(self._generators, state["generators"], strict=True):
            generator.set_state(own)
        self.wrong, self.seen = state["counts"]

    @property
    def _generators(self) -> Sequence[torch.Generator]:
        """The generators that noise is drawn from, one for each copy."""
        return self.model.generators if isinstance(self.model, Replicas) else ()
