"""A split whose images are read and decoded while they are learned from."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from typing_extensions import override

from apical.data.augment import drawn
from apical.data.batching import Batch, DataError, Share, as_batch, rows_of
from apical.data.images import Split
from apical.data.streaming.held import Held
from apical.data.streaming.order import shuffled
from apical.data.streaming.pixels import Resize, UndecodableError, opened
from apical.data.streaming.sources import Source

AHEAD = 3
"""Batches that are read and decoded while one is learned from."""
CHUNK = 8
"""Images that a thread decodes at a time."""
NAMED = 3
"""Images left out that are named in a warning."""
_PART = 1000
"""What tells random parts' numbers from those of augmentations."""

Wanted = tuple[np.ndarray, Callable[[], np.ndarray] | None]
"""A batch before it is read: its samples [n], and what draws random numbers for each [n, k], if it is trained on."""


@dataclass(frozen=True)
class Reading:
    """How a stream is read.

    Args:
        buffer: samples that are mixed at a time, where blocks are read at a stretch.
        workers: threads that decode. Pillow decodes and resizes without Python's lock, so they do it side by side.
        skip_corrupt: leave images out that can't be decoded, instead of ending with an error.
    """

    buffer: int = 10_000
    workers: int = 1
    skip_corrupt: bool = False


class Stream(Split):
    """A split whose images are read and decoded when a batch of them is asked for.

    Its order depends on seed and epoch alone, so that a run goes on at the very sample, and is the same for any number of
    processes and threads. No more is in memory than the batches that are on their way and, of parquet files, the encoded
    images that have yet to come out of the buffer.

    Args:
        source: where the encoded images are. resize: how they come to have one size. reading: how they are read.
        index: which of the source's samples, in rising order; None: all.
    """

    def __init__(self, source: Source, resize: Resize, reading: Reading, index: np.ndarray | None = None) -> None:
        self.source, self.resize, self.reading = source, resize, reading
        self.index = np.arange(len(source.labels)) if index is None else np.sort(index)
        ends = np.searchsorted(self.index, np.cumsum(source.blocks))
        self._counts = np.diff(ends, prepend=0)
        self._skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """None: they are not in memory.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{self.source.name}: images are streamed, and this asks for all of them at once; load the data without stream"
        )

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The labels, int64 [N]."""
        return torch.from_numpy(self.source.labels[self.index])

    @property
    @override
    def shape(self) -> tuple[int, int, int]:
        size = self.resize.size
        return (3, *(self.resize.shape if size is None else (size, size)))

    @property
    @override
    def skipped(self) -> Mapping[str, str]:
        return self._skipped

    @property
    @override
    def streamed(self) -> bool:
        return True

    @override
    def check(self, classes: int, where: str) -> None:
        labels = self.source.labels[self.index]
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            row = int(outside.argmax())
            raise DataError(
                f"{self.source.where(int(self.index[row]))}: label {labels[row]} is none of the {classes} classes "
                f"0 ... {classes - 1}; mend the labels, or name a split that has them (test_split=): on the hub, -1 often stands "
                "for hidden ones"
            )

    @override
    def part(self, index: Int[Tensor, " n"]) -> Split:
        return Stream(self.source, self.resize, self.reading, self.index[index.numpy()])

    @override
    def batches(
        self,
        size: int,
        seed: int | Sequence[int],
        epoch: int,
        start: int = 0,
        *,
        part: Share = (0, 1),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        if not isinstance(seed, int):
            raise DataError(f"{self.source.name}: streamed images come in one order at a time, got seeds {list(seed)}")
        if size < 1:
            raise DataError(f"size has to be 1 or more, got {size}")
        order = self.index[shuffled(self._counts.tolist(), self.reading.buffer, seed, epoch)]
        return self._taken(list(self._wanted(order, size, (seed, epoch), start, part)), device)

    def _wanted(
        self, order: np.ndarray, size: int, drawn_by: tuple[int, int], start: int, part: Share
    ) -> Iterator[Wanted]:
        for number, first in enumerate(range(0, len(order), size)):
            if number >= start:
                rows = order[first : first + size]
                draw = None if self.resize.part is None else partial(self._draw, len(rows), *drawn_by, number, part)
                yield rows[rows_of(part, len(rows))], draw

    def _draw(self, rows: int, seed: int, epoch: int, number: int, part: Share) -> np.ndarray:
        assert self.resize.part is not None
        return drawn(rows, self.resize.part.numbers, seed, epoch, number, _PART)[rows_of(part, rows)]

    @override
    def in_order(self, size: int, *, device: torch.device | str = "cpu") -> Iterator[Batch]:
        rows = range(0, len(self), size)
        return self._taken([(self.index[first : first + size], None) for first in rows], device)

    @override
    def first(self, n: int, *, device: torch.device | str = "cpu") -> Batch:
        return as_batch(*self.pictures(n), device)

    @override
    def pictures(self, n: int) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        found, labels, first = [], [], 0
        while first < len(self) and sum(map(len, labels)) < n:
            missing = n - sum(map(len, labels))
            with closing(self._read([(self.index[first : first + missing], None)])) as passes:
                images, own = next(passes)
            found.append(images)
            labels.append(own)
            first += missing
        return torch.cat(found), torch.cat(labels)

    @override
    def batch(self, index: Int[Tensor, " n"], *, device: torch.device | str = "cpu") -> Batch:
        with closing(self._taken([(self.index[index.cpu().numpy()], None)], device)) as taken:
            return next(taken)

    def _taken(self, wanted: Sequence[Wanted], device: torch.device | str) -> Generator[Batch]:
        on_gpu = torch.device(device).type == "cuda"
        with closing(self._read(wanted)) as passes:
            for images, labels in passes:
                yield as_batch(images.pin_memory() if on_gpu else images, labels, device)

    def _read(self, wanted: Sequence[Wanted]) -> Generator[tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]]:
        """The images and labels of some batches, each of which is read while those before it are used."""
        before, held = len(self._skipped), Held(self.source, (rows for rows, _ in wanted))
        with ThreadPoolExecutor(self.reading.workers) as pool, ThreadPoolExecutor(1) as reader:
            coming: deque[Future[_Decoding]] = deque()
            try:
                for number in range(len(wanted) + AHEAD):
                    if number < len(wanted):
                        coming.append(reader.submit(self._start, wanted[number], held, pool))
                    if number >= AHEAD:
                        yield self._finish(coming.popleft().result())
            finally:
                for one in coming:
                    one.cancel()
                pool.shutdown(wait=False, cancel_futures=True)
        self._warn(before)

    def _start(self, wanted: Wanted, held: Held, pool: ThreadPoolExecutor) -> _Decoding:
        """Have a batch decoded, once what can't be read image by image is read."""
        rows, draw = wanted
        encoded, u = held.take(rows), None if draw is None else draw()
        pixels = np.empty((len(rows), *self.shape), dtype=np.uint8)
        jobs = [
            pool.submit(self._decode, rows, encoded, u, pixels, range(first, min(first + CHUNK, len(rows))))
            for first in range(0, len(rows), CHUNK)
        ]
        return _Decoding(rows, pixels, jobs)

    def _decode(
        self,
        rows: np.ndarray,
        encoded: list[bytes] | None,
        u: np.ndarray | None,
        pixels: np.ndarray,
        places: Iterable[int],
    ) -> list[tuple[int, str]]:
        """Put some images of a batch in their places; place and reason of those that can't be decoded."""
        wrong = []
        for place in places:
            index = int(rows[place])
            try:
                image = opened(self.source.read(index) if encoded is None else encoded[place])
            except UndecodableError as error:
                wrong.append((place, str(error)))
                continue
            resized = self.resize(image, None if u is None else u[place])
            if resized is None:
                height, width = self.resize.shape
                raise DataError(
                    f"{self.source.where(index)}: image of {image.width} x {image.height} pixels among images of {width} x "
                    f"{height}; say what size all shall have: image_size= (--image-size)"
                )
            pixels[place] = np.asarray(resized).transpose(2, 0, 1)
        return wrong

    def _finish(self, decoding: _Decoding) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        wrong = [one for job in decoding.jobs for one in job.result()]
        rows, pixels = decoding.rows, decoding.pixels
        where = why = ""
        for place, why in wrong:
            where = self.source.where(int(rows[place]))
            if not self.reading.skip_corrupt:
                raise DataError(
                    f"{where}: image can't be decoded: {why}; mend it or fetch it again, or leave such images out: "
                    "skip_corrupt=True (--skip-corrupt)"
                )
            self._skipped[where] = why
        if wrong:
            kept = np.delete(np.arange(len(rows)), [place for place, _ in wrong])
            if not len(kept):
                raise DataError(f"{where}: none of the {len(rows)} images of a batch can be decoded: {why}")
            rows, pixels = rows[kept], pixels[kept]
        return torch.from_numpy(pixels), torch.from_numpy(self.source.labels[rows])

    def _warn(self, before: int) -> None:
        """Say which images were left out in a pass that weren't before it."""
        new = list(self._skipped.items())[before:]
        if new:
            named = "; ".join(f"{where} ({why})" for where, why in new[:NAMED])
            more = f"; and {len(new) - NAMED:,} more" if len(new) > NAMED else ""
            plural = "image that can't be decoded is" if len(new) == 1 else "images that can't be decoded are"
            warnings.warn(f"{len(new):,} {plural} left out: {named}{more}", stacklevel=3)


@dataclass(frozen=True)
class _Decoding:
    """A batch on its way: its samples, where their pixels go, and who puts them there."""

    rows: np.ndarray
    pixels: np.ndarray
    jobs: list[Future[list[tuple[int, str]]]]
