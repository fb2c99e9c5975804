"""What has to be kept in memory while a stream is read in another order than it is stored in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from apical.data.streaming.sources import Source


class Held:
    """Encoded images of blocks that are read as a whole, from when they are read until their batch comes.

    Args:
        source: of the images. wanted: the samples of each batch that is to come.
    """

    def __init__(self, source: Source, wanted: Iterable[np.ndarray]) -> None:
        self._source, self._images = source, {}
        self._ends = np.cumsum(source.blocks)
        self._wanted = np.zeros(len(source.labels), dtype=bool)
        for rows in wanted:
            self._wanted[rows] = True

    def take(self, rows: np.ndarray) -> list[bytes] | None:
        """The encoded images of these samples; None where each is read when it is decoded."""
        found: list[bytes] = []
        for index in rows.tolist():
            if index not in self._images:
                block = int(np.searchsorted(self._ends, index, side="right"))
                images = self._source.block(block)
                if images is None:
                    return None
                first = int(self._ends[block]) - len(images)
                coming = np.flatnonzero(self._wanted[first : first + len(images)])
                self._images |= {first + one: images[one] for one in coming.tolist()}
            found.append(self._images.pop(index))
        return found
