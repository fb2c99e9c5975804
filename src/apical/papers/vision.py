"""Training of the papers' convolutional networks on images: seeds side by side, in single or mixed precision, resumable."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import apical
from apical.data import ImageData
from apical.data.images import Split
from apical.learner import Criterion
from apical.papers.course import course
from apical.papers.experiment import Task
from apical.papers.record import Curve

PRECISIONS = ("32-true", "bf16-mixed")
POINTS = 100
"""Most points of a curve; up to so many epochs, there is one for each."""
AT_ONCE = 500
"""Images in a pass that measures."""
Made = TypeVar("Made")


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """While open, PyTorch's global generator, which weights and dropout are drawn from, goes on from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def seeded(seed: int, make: Callable[[], Made]) -> Made:
    """What `make` makes with the random numbers of `seed`."""
    with repeatable(seed):
        return make()


def feedback_stream(seed: int) -> torch.Generator:
    """The stream that a seed's feedback, masks and noise are drawn from."""
    return torch.Generator().manual_seed(seed + 10**6)


def side_by_side(learners: Sequence[apical.Learner], example: Tensor) -> nn.Module:
    """The network of one learner, or those of several as copies in one.

    Args:
        learners: of networks of one structure, one for each seed. example: a batch of one network.
    """
    models = [one.model for one in learners]
    return models[0] if len(models) == 1 else apical.replicate(models, example_input=example)


def held_out(split: Split, share: float = 0.1) -> tuple[Split, Split]:
    """A split without its last images, and those, to choose or watch by."""
    kept = len(split) - max(1, round(share * len(split)))
    return (
        Split(split.images[:kept], split.labels[:kept]),
        Split(split.images[kept:], split.labels[kept:]),
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns.

    Args:
        loss: loss(outputs, targets) -> [N]. batch: images in a minibatch.
        summed: whether the loss is summed over the minibatch; else it is its mean.
        prepared: what becomes of images [N, C, H, W] from 0 to 1 before the network sees them.
        stop: the running mean of training errors (a fraction) at which a network is done; None: it never is.
    """

    loss: Criterion
    batch: int
    summed: bool = False
    prepared: Callable[[Tensor], Tensor] | None = None
    stop: float | None = None


class Training:
    """The training of one network, or of copies of several seeds side by side.

    Args:
        model: attached; takes x [N, C, H, W], or [copies, N, C, H, W]. optimizer: of its parameters.
        recipe: how it learns. train: images to learn from, in an order of each seed's own. seeds: of the networks.
        precision: of the passes, one of `PRECISIONS`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        train: Split,
        seeds: Sequence[int],
        precision: str = "32-true",
    ) -> None:
        self.model, self.optimizer, self.recipe, self.train = model, optimizer, recipe, train
        self.seeds, self.precision = tuple(seeds), precision
        self.learner = apical.learner_of(model)
        self.per_epoch = steps_of(train, recipe.batch)
        self._next, self._batches = -1, iter(())
        self.wrong, self.seen = torch.zeros(len(self.seeds), dtype=torch.int64), 0
        self.mean_error = torch.ones(len(self.seeds), dtype=torch.float64)

    def learn(self, step: int) -> None:
        """One minibatch for every network."""
        x, y = self._batch(step)
        self.model.train()
        with self.casting():
            outputs = self.model(x)
        losses = self.recipe.loss(outputs.float().flatten(0, -2), y.flatten()).view(len(self.seeds), -1)
        (losses.sum(1) if self.recipe.summed else losses.mean(1)).sum().backward()
        self.learner.adapt(x, y, self.recipe.loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wrong += (outputs.detach().argmax(-1) != y).view(len(self.seeds), -1).sum(1)
        self.seen += y.shape[-1]

    def training_errors(self) -> list[float]:
        """The error of each network, in %, on the minibatches since the last call as they were learned from; nan without any."""
        errors = self.wrong.double() / self.seen if self.seen else torch.full_like(self.mean_error, math.nan)
        if self.seen:
            self.mean_error = 0.75 * self.mean_error + 0.25 * errors
        self.wrong, self.seen = torch.zeros_like(self.wrong), 0
        return (100 * errors).tolist()

    @property
    def done(self) -> bool:
        """True once all networks have learned the training images, as the recipe's `stop` has it."""
        return self.recipe.stop is not None and bool((self.mean_error <= self.recipe.stop).all())

    @torch.no_grad()
    def errors(self, split: Split) -> list[float]:
        """The error of each network on a split, in %."""
        self.model.eval()
        wrong = torch.zeros(len(self.seeds), dtype=torch.int64)
        for images, y in split.in_order(AT_ONCE):
            x = self._prepared(images)
            with self.casting():
                outputs = self.model(x if len(self.seeds) == 1 else x.expand(len(self.seeds), *x.shape))
            wrong += (outputs.argmax(-1).view(len(self.seeds), -1) != y).sum(1)
        return (100 * wrong.double() / len(split)).tolist()

    def casting(self) -> AbstractContextManager[Any]:
        """The context of passes in the precision asked for."""
        if self.precision == "32-true":
            return contextlib.nullcontext()
        return torch.autocast("cpu", torch.bfloat16)

    def state_dict(self) -> dict[str, Any]:
        """The state of all that changes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": self.learner.state_dict(),
            "counts": (self.wrong, self.seen, self.mean_error),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.learner.load_state_dict(state["learner"])
        self.wrong, self.seen, self.mean_error = state["counts"]

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        if step != self._next or step % self.per_epoch == 0:
            epoch, number = divmod(step, self.per_epoch)
            seeds = self.seeds[0] if len(self.seeds) == 1 else self.seeds
            self._batches = self.train.batches(self.recipe.batch, seeds, epoch, number)
        self._next = step + 1
        x, y = next(self._batches)
        return (self._prepared(x) if x.dim() == 4 else self._prepared(x.flatten(0, 1)).view_as(x)), y

    def _prepared(self, images: Tensor) -> Tensor:
        return images if self.recipe.prepared is None else self.recipe.prepared(images)


def steps_of(train: Split, batch: int) -> int:
    """The number of minibatches in an epoch, the last one smaller where it does not fill."""
    return math.ceil(len(train) / batch)


def run(
    task: Task,
    training: Training,
    steps: int,
    watched: Mapping[str, Split],
    *,
    more: Callable[[], Mapping[str, Sequence[float]]] = dict,
    after: Callable[[int], None] | None = None,
    name: str = "course",
) -> dict[str, Curve]:
    """The errors in % by epoch, "training error" and "NAME error" of every split watched, and what `more` measures.

    `after` hears after every step how many have been made.
    """
    each = training.per_epoch * max(1, math.ceil(steps / training.per_epoch / POINTS))

    def measure() -> dict[str, Sequence[float]]:
        found = {f"{split} error": training.errors(images) for split, images in watched.items()}
        return {"training error": training.training_errors(), **found, **more()}

    def learn(step: int) -> None:
        training.learn(step)
        if after is not None:
            after(step + 1)

    return course(
        task,
        steps,
        learn=learn,
        measure=measure,
        at=range(0, steps, each),
        parts={"training": training},
        name=name,
        x=lambda step: step / training.per_epoch,
        enough=lambda found: training.done,
    )


def below(one: Sequence[float], other: Sequence[float], images: int = 10_000) -> bool | None:
    """Whether one error in %, of some seeds, is below another; None if they are within two standard errors of each other."""
    return above_zero([other], [one], images)


def above_zero(plus: Sequence[Sequence[float]], minus: Sequence[Sequence[float]], images: int = 10_000) -> bool | None:
    """Whether the errors of `plus` exceed those of `minus` in sum; None if that is within two standard errors of nothing.

    Args:
        plus, minus: errors in %, each of some seeds. images: that they were counted on. A count has an error of its own, which is
            the least; a single seed has no other.
    """
    square = 0.0
    for values in (*plus, *minus):
        mean = average(values)
        counted = mean * (100 - mean) / images / len(values)
        own = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values)
        square += max(counted, own)
    apart = sum(map(average, plus)) - sum(map(average, minus))
    return None if abs(apart) <= 2 * math.sqrt(square) else apart > 0


def average(values: Sequence[float]) -> float:
    """The mean over seeds."""
    return sum(values) / len(values)


def listed(errors: Mapping[str, Sequence[float]]) -> str:
    """Errors with their names, in words.

    >>> listed({"bp": [30.0, 31.0], "urfb": [33.0]})
    'bp 30.50 %, urfb 33.00 %'
    """
    return ", ".join(f"{name} {average(values):.2f} %" for name, values in errors.items())


def with_data(data: ImageData, batch: int, share: float | None = None) -> int:
    """Minibatches in an epoch of a data set's training images, or of those that are left when a share is held out."""
    return steps_of(data.train if share is None else held_out(data.train, share)[0], batch)
