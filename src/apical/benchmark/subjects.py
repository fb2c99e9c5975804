"""The networks that are timed, each with its input shape and batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from apical.networks import lansdell2020_cnn, mlp, parse_sizes, resnet20


@dataclass(frozen=True)
class Subject:
    """A network to time, with the shape of its inputs and its batch size.

    >>> subject = SUBJECTS["784-50-20-10"]
    >>> subject.shape, subject.batch
    ((784,), 32)
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def _sizes(text: str, batch: int) -> Subject:
    sizes = parse_sizes(text)
    return Subject(lambda: mlp(sizes), (sizes[0],), batch)


SUBJECTS: dict[str, Subject] = {
    "784-50-20-10": _sizes("784-50-20-10", 32),
    "784-1000-10": _sizes("784-1000-10", 64),
    "784-800-800-10": _sizes("784-800-800-10", 64),
    "3072-1000-1000-1000-10": _sizes("3072-1000-1000-1000-10", 128),
    "lansdell2020-cnn": Subject(lansdell2020_cnn, (3, 32, 32), 64),
    "resnet20": Subject(resnet20, (3, 32, 32), 64),
}
"""Name -> the networks that figures are quoted for."""
