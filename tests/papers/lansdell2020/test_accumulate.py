"""Batches that grow with what was seen."""

from __future__ import annotations

import numpy as np

from apical.papers.lansdell2020 import accumulate


def test_batches_add_up_and_grow_slowly():
    for samples in (1, 31, 5000, 3_000_000):
        sizes = accumulate.batches(samples)
        assert sum(sizes) == samples
        seen = np.cumsum([0, *sizes[:-1]])
        assert all(size <= max(32, before / 32) and size <= 8192 for size, before in zip(sizes, seen, strict=True))
    assert accumulate.batches(1000)[:5] == [32] * 5
