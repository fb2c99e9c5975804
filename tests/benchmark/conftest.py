"""Two networks that take no time, and a clock that a test moves."""

from __future__ import annotations

import gc

import pytest
from torch import nn

from apical.benchmark import benchmark, timing
from apical.benchmark.subjects import Subject
from apical.networks import mlp

TINY = {
    "tiny": Subject(lambda: mlp([6, 5, 4, 10]), (6,), 4),
    "small": Subject(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10)), (2, 6, 6), 3
    ),
}


@pytest.fixture(scope="package", autouse=True)
def frozen() -> None:
    """What earlier tests have left does not count as garbage to search either: timing collects before every repeat."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny(monkeypatch) -> dict[str, Subject]:
    """Two networks that take no time, in place of the real ones."""
    monkeypatch.setattr(benchmark, "SUBJECTS", TINY)
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device, dtype: 1e9)  # seconds; test_benchmark measures it once
    return TINY


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock
