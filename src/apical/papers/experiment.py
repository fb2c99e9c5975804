"""What an experiment of a paper is: a frozen description that can run one of its conditions and judge what came out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from apical.data import ImageData
from apical.papers.outcome import Outcome
from apical.papers.record import Record
from apical.training import checkpoint

CHECKPOINT_SECONDS = 60.0

Watcher = Callable[[int, int, str], None]
"""watcher(done, steps, note): called now and then while a task goes on."""


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """One figure, table or statement of a paper, as a command can run it.

    A subclass adds what its kind of experiment needs (sizes, rates, rules), as fields with the paper's values. Values that the
    paper leaves open stand in `readings`, and are marked in code as in reference.md.

    Args:
        name: "paper/figure", as reference.md has it. title: in a few words. source: figure, section or code in the paper.
        length: training at scale 1, in words ("2000 examples"). seeds: how many at full length.
        minutes: about how long all conditions and seeds take at scale 1 on two cores.
        data: name of the image data set on the hub, or None where samples are drawn.
        readings: every choice that the paper leaves open, one sentence each.
        together: whether `run` takes all seeds of a condition at once (replicas), or is called for each.
    """

    name: str
    title: str
    source: str
    length: str
    seeds: int
    minutes: float
    data: str | None = None
    readings: tuple[str, ...] = ()
    together: bool = True

    @property
    @abstractmethod
    def conditions(self) -> tuple[str, ...]:
        """What is compared: rules, usually. `run` is called for each."""

    @abstractmethod
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """Lengths at scale 1 that `--scale` shortens: name -> steps. Each must be at least 1 when it is scaled."""

    @abstractmethod
    def run(self, task: Task) -> Record:
        """Train under `task.condition` from `task.seeds`, and measure."""

    @abstractmethod
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """Judge: condition -> record, to rows, claims and panels. Conditions that were left out are missing."""

    @property
    def runs(self) -> str:
        """What is run: experiments of the same are views of one set of runs, and can take finished conditions from each other."""
        return self.name

    @property
    def paper(self) -> str:
        """The paper's key."""
        return self.name.partition("/")[0]


class Images(NamedTuple):
    """Of a data set: the shape of an image, and how many classes and images of both splits there are."""

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int


IMAGES = {
    "ylecun/mnist": Images((1, 28, 28), 10, 60_000, 10_000),
    "uoft-cs/cifar10": Images((3, 32, 32), 10, 50_000, 10_000),
    "uoft-cs/cifar100": Images((3, 32, 32), 100, 50_000, 10_000),
}
"""Data sets that experiments name."""


def same_data(one: str | None, other: str | None) -> bool:
    """Whether two names, of the hub or of a folder, are those of one data set."""
    one, other = (None if name is None else name.rpartition("/")[2] for name in (one, other))
    return one == other


@dataclass
class Task:
    """One condition of an experiment, from some seeds: what `Experiment.run` is given.

    Args:
        condition: one of the experiment's. seeds: to run from. scale: fraction of the paper's length.
        lengths: the experiment's `steps` after scaling. folder: for checkpoints. watcher: hears of progress.
    """

    condition: str
    seeds: tuple[int, ...]
    scale: float
    lengths: Mapping[str, int]
    folder: Path
    images: ImageData | None = None
    watcher: Watcher = lambda done, steps, note: None

    @cached_property
    def data(self) -> ImageData:
        """The images."""
        assert self.images is not None, "this experiment names no data"
        return self.images

    def tell(self, done: int, steps: int, note: str = "") -> None:
        """Say how far it is."""
        self.watcher(done, steps, note)

    def restore(self, name: str) -> dict[str, Any] | None:
        """The last checkpoint of this name, if there is one."""
        path = self.folder / f"{name}.ckpt"
        if not path.exists():
            return None
        kept = checkpoint.load(path)
        self._before = max(self._before, kept["seconds"])
        return kept["state"]

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint: tensors, numbers, strings and containers of them."""
        checkpoint.save(self.folder / f"{name}.ckpt", {"seconds": self.seconds, "state": state})
        self._saved = time.monotonic()

    @property
    def save_due(self) -> bool:
        """Whether a minute has passed since the last checkpoint."""
        return time.monotonic() - self._saved > CHECKPOINT_SECONDS

    @property
    def seconds(self) -> float:
        """What it has taken so far, before it was stopped included."""
        return self._before + time.monotonic() - self._started

    def __post_init__(self) -> None:
        self._started = self._saved = time.monotonic()
        self._before = 0.0
