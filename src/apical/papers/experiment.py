"""Experiments of papers: frozen descriptions that can run each of their conditions and judge what came out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from apical import data as images
from apical.data import ImageData
from apical.distributed import rank, wait_for_all
from apical.papers.outcome import Claim, Outcome
from apical.papers.record import Record
from apical.training import checkpoint

CHECKPOINT_SECONDS = 60.0
T = TypeVar("T")

Rows = Mapping[str, Sequence[float]]
"""Label of a row -> value per seed."""

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
        precisions: of the passes through the network, that a run may choose from; the first is used unless told otherwise.

    >>> from apical.papers import find
    >>> fig2a = find("lillicrap2016/fig2a")
    >>> fig2a.conditions, dict(fig2a.steps(None))
    (('shallow', 'reinforce', 'bp', 'fa', 'shallow, own rate'), {'examples': 2000})
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
    precisions: tuple[str, ...] = ("32-true",)

    @property
    @abstractmethod
    def conditions(self) -> tuple[str, ...]:
        """The names of what is compared: rules, usually. `run` is called for each."""

    @abstractmethod
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        """The lengths at scale 1 that `--scale` shortens: name -> steps. Each must be at least 1 when it is scaled."""

    def load(self, name: str | None) -> ImageData | None:
        """The images of this name, or of the experiment's own; None for one that draws its samples.

        Raises:
            ValueError: for images of another kind, or any where none are taken.
        """
        if self.data is None:
            if name is not None:
                raise ValueError(f"{self.name} draws its own samples and takes no data; leave data out, got {name!r}")
            return None
        name = self.data if name is None else name
        loaded, own = images.load(name), IMAGES[self.data]
        if (tuple(loaded.shape), loaded.classes) != (own.shape, own.classes):
            raise ValueError(
                f"data: {name} has images of {list(loaded.shape)} in {loaded.classes} classes, but {self.name} is about "
                f"{self.data}, {list(own.shape)} in {own.classes} classes"
            )
        return loaded

    @abstractmethod
    def run(self, task: Task) -> Record:
        """The record of a training under `task.condition` from `task.seeds`."""

    @abstractmethod
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        """The rows, claims and panels of condition -> record. Conditions that were left out are missing."""

    def claims_of(self, rows: Rows) -> Sequence[Claim] | None:
        """The claims as they are judged now, of the rows that were published of these runs; None where rows don't suffice.

        For runs whose records are gone, by experiments whose statements are about rows alone.
        """
        return None

    @property
    def runs(self) -> str:
        """The key of the training runs.

        Experiments with the same key show the same runs from different sides, so one can reuse the other's finished conditions.
        """
        return self.name

    @property
    def workers(self) -> int:
        """How many processes can share a minibatch; any number that divides it runs the experiment. 1: it runs in one."""
        return 1

    @property
    def paper(self) -> str:
        """The paper's key, e.g. "lillicrap2016"."""
        return self.name.partition("/")[0]


class Images(NamedTuple):
    """The measures of a data set: the shape of an image, and how many classes and images of both splits there are."""

    shape: tuple[int, int, int]
    classes: int
    train: int
    test: int


IMAGES = {
    "ylecun/mnist": Images((1, 28, 28), 10, 60_000, 10_000),
    "uoft-cs/cifar10": Images((3, 32, 32), 10, 50_000, 10_000),
    "uoft-cs/cifar100": Images((3, 32, 32), 100, 50_000, 10_000),
    "ILSVRC/imagenet-1k": Images((3, 224, 224), 1000, 1_281_167, 50_000),
}
"""The data sets that experiments name: name on the hub -> measures."""


def same_data(one: str | None, other: str | None) -> bool:
    """True if two names, of the hub or of a folder, are those of one data set."""
    one, other = (None if name is None else name.rpartition("/")[2] for name in (one, other))
    return one == other


def given(value: T | None, name: str = "images") -> T:
    """The value, which the experiment at hand needs: images of one that trains on them, feedback of a rule that has some.

    Raises:
        ValueError: if it is None.
    """
    if value is None:
        raise ValueError(f"this experiment needs {name}, got none")
    return value


def unwatched(done: int, steps: int, note: str) -> None:
    """The watcher of a task that nobody watches: it does nothing."""


@dataclass
class Task:
    """The task that `Experiment.run` is given: one condition of an experiment, from some seeds.

    Args:
        condition: one of the experiment's. seeds: to run from. scale: fraction of the paper's length.
        lengths: the experiment's `steps` after scaling. folder: for checkpoints. images: of experiments that name data.
        watcher: hears of progress. precision: one of the experiment's `precisions`.

    >>> import tempfile
    >>> from apical.papers import find
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     task = Task("fa", seeds=(0, 1), scale=0.01, lengths={"examples": 20}, folder=Path(folder))
    ...     record = find("lillicrap2016/fig2b").run(task)
    >>> len(record.curves["normalized squared error"].y)
    2
    """

    condition: str
    seeds: tuple[int, ...]
    scale: float
    lengths: Mapping[str, int]
    folder: Path
    images: ImageData | None = None
    watcher: Watcher = unwatched
    precision: str = "32-true"

    @cached_property
    def data(self) -> ImageData:
        """The images, of an experiment that names a data set."""
        return given(self.images)

    def tell(self, done: int, steps: int, note: str = "") -> None:
        """Let the watcher know how many of the steps are done."""
        self.watcher(done, steps, note)

    def restore(self, name: str) -> dict[str, Any] | None:
        """The state in the last checkpoint of this name; None if there is no such checkpoint."""
        path = self.folder / f"{name}.ckpt"
        kept = checkpoint.load(path) if path.exists() else None
        wait_for_all()  # None goes on, and writes another, before all have read it.
        if kept is None:
            return None
        self._before = max(self._before, kept["seconds"])
        return kept["state"]

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Write a checkpoint of a state: tensors, numbers, strings and containers of them.

        Of several processes, whose states are one, the first writes it.
        """
        if rank() == 0:
            checkpoint.save(self.folder / f"{name}.ckpt", {"seconds": self.seconds, "state": state})
        self._saved = time.monotonic()

    @property
    def save_due(self) -> bool:
        """True if a minute has passed since the last checkpoint."""
        return time.monotonic() - self._saved > CHECKPOINT_SECONDS

    @property
    def seconds(self) -> float:
        """The seconds that the task has taken so far, those before it was stopped included."""
        return self._before + time.monotonic() - self._started

    def __post_init__(self) -> None:
        self._started = self._saved = time.monotonic()
        self._before = 0.0
