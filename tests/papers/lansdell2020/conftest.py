"""Images of noise, and tasks on them."""

from __future__ import annotations

import pytest
import torch

from apical.data import ImageData
from apical.data.images import Split
from apical.papers.experiment import Task


def split(n: int, seed: int) -> Split:
    stream = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 1, 28, 28), generator=stream, dtype=torch.uint8)
    return Split(images, torch.randint(10, (n,), generator=stream))


@pytest.fixture(scope="session")
def data() -> ImageData:
    return ImageData("noise", split(120, 0), split(40, 1), 10, tuple(map(str, range(10))))


@pytest.fixture
def task(data, tmp_path):
    """task(condition, seeds, lengths)."""
    return lambda condition, seeds, lengths: Task(condition, seeds, 1.0, lengths, tmp_path, data)
