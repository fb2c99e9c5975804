"""Folders of small texts."""

from pathlib import Path

import numpy as np


def written(folder: Path, count: int = 10, size: int = 400) -> Path:
    """A folder with `count` texts of bytes from 1 to 255, which are no UTF-8, of `size` bytes and a few more each."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:02}.txt").write_bytes(random.integers(1, 256, size + number, dtype=np.uint8).tobytes())
    return folder
