"""Whether a training step is tried for, or captured as, a CUDA graph (`apical.captured`), and what then can't be done.

A graph does again what the device did, and nothing of what Python did on the way: no number is read back, no state is counted on.
Code that does such things asks here, or says here why it can't be captured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

Streams = Mapping[Any, Iterator[list[torch.Generator]]]
"""Owner of phases -> the generators of each of its phases in the step, in order; they are known to the graph."""


class Trial:
    """A step that is made for a graph. hindrances: what was said to be in the way. streams: None where it is only tried."""

    def __init__(self, streams: Streams | None = None) -> None:
        self.streams = streams
        self.hindrances: list[str] = []


_trial: Trial | None = None


@contextmanager
def trying(streams: Streams | None = None) -> Iterator[Trial]:
    """While open, a step is tried; with `streams`, it is captured. One at a time in a process, as PyTorch has it."""
    global _trial
    _trial = made = Trial(streams)
    try:
        yield made
    finally:
        _trial = None


def tried() -> bool:
    """Whether a step is tried or captured, so that nothing is to be read back from the device."""
    return _trial is not None


def going_on() -> bool:
    """Whether a step is captured, so that the device computes nothing yet."""
    return _trial is not None and _trial.streams is not None


def hinder(why: str) -> None:
    """Say why a step can't be captured, where one is tried.

    Raises:
        RuntimeError: where it is captured already.
    """
    if _trial is not None:
        if _trial.streams is not None:
            raise RuntimeError(why)
        _trial.hindrances.append(why)


def streams(owner: object) -> list[torch.Generator] | None:
    """The generators of a phase of `owner`, seeded and known to the graph; None where no step is captured."""
    own = None if _trial is None or _trial.streams is None else _trial.streams.get(owner)
    return None if own is None else next(own, None)
