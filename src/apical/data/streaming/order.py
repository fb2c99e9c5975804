"""The order of an epoch of a stream: near samples are read one after the other, and mixed in a buffer.

It is computed from the sizes of blocks alone, before anything is read. So a run that is resumed leaves out what it has seen
without reading it, and every process knows what the others take.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shuffled(blocks: Sequence[int], buffer: int, seed: int, epoch: int) -> np.ndarray:
    """Every sample once: blocks in random order, and their samples as they come out of a buffer at random.

    Args:
        blocks: samples in each block; those of a block have consecutive numbers.
        buffer: how many samples are mixed at a time; 1: samples of a block keep their order.
        seed: with `epoch`, all that the order depends on.

    Returns:
        int64 [N], a permutation.

    >>> shuffled([2, 3, 2], buffer=1, seed=0, epoch=0).tolist()
    [5, 6, 0, 1, 2, 3, 4]
    >>> sorted(shuffled([2, 3, 2], buffer=4, seed=0, epoch=0).tolist())
    [0, 1, 2, 3, 4, 5, 6]
    """
    random = np.random.default_rng([seed, epoch])
    sizes = np.asarray(blocks, dtype=np.int64)
    ends = sizes.cumsum()
    order = random.permutation(len(sizes))
    # Consecutive numbers of each block, in the blocks' random order.
    taken = sizes[order]
    steps = np.arange(taken.sum()) - np.repeat(taken.cumsum() - taken, taken)
    coming = np.repeat(ends[order] - taken, taken) + steps
    if buffer == 1 or len(coming) < 2:
        return coming
    if buffer >= len(coming):
        return random.permutation(coming)
    held, places = coming[:buffer].tolist(), random.integers(0, buffer, len(coming) - buffer).tolist()
    found = []
    for place, new in zip(places, coming[buffer:].tolist(), strict=True):
        found.append(held[place])
        held[place] = new
    return np.concatenate([np.array(found, dtype=np.int64), random.permutation(held)])
