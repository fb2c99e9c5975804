"""Tar shards of images with their labels, as WebDataset writes them: 0001.jpg, 0001.cls, 0002.jpg, 0002.cls, ..."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from typing_extensions import override

from apical.data.batching import DataError
from apical.data.streaming.sources import KINDS, MOST_CLASSES, Source
from apical.files import write_bytes

_HEADER = 512  # bytes, as every part of a tar file is a multiple of


class Shards(Source):
    """Tar files. They are looked through once, for where each image begins; what was found is kept in the cache.

    Args:
        name: for messages. files: the shards. cache: folder for what was found.

    Raises:
        DataError: if a shard ends early or is damaged, or a sample lacks its image or its label.
    """

    def __init__(self, name: str, files: Sequence[Path], cache: Path) -> None:
        self.name, self.class_names, self._files = name, None, list(files)
        seen = [(str(one.absolute()), one.stat().st_size, one.stat().st_mtime_ns) for one in self._files]
        kept = cache / f"shards-{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}.npz"
        found = _kept(kept)
        if found is None:
            scanned = [_scanned(name, number, path) for number, path in enumerate(self._files)]
            found = np.array([row for rows in scanned for row in rows], dtype=np.int64).reshape(-1, 4)
            stream = io.BytesIO()
            np.savez(stream, found=found)
            write_bytes(kept, stream.getvalue())
        self._shard, self._offset, self._size, self.labels = (np.ascontiguousarray(one) for one in found.T)
        self.blocks = np.bincount(self._shard, minlength=len(self._files)).tolist()

    @override
    def read(self, index: int) -> bytes:
        path = self._files[self._shard[index]]
        size = int(self._size[index])
        try:
            with path.open("rb") as file:
                file.seek(int(self._offset[index]))
                found = file.read(size)
        except OSError as error:
            raise DataError(
                f"{self.name}: shard {path.name!r} can't be read: {error}; put it back, and resume"
            ) from error
        if len(found) < size:
            raise DataError(
                f"{self.name}: shard {path.name!r} ends early, within an image; fetch or write it again, and resume the run"
            )
        return found

    @override
    def block(self, number: int) -> list[bytes] | None:
        return None

    @override
    def where(self, index: int) -> str:
        path = self._files[self._shard[index]]
        try:
            with path.open("rb") as file:
                file.seek(int(self._offset[index]) - _HEADER)
                called = file.read(100).split(b"\0")[0].decode(errors="backslashreplace")
        except OSError:
            called = f"image at byte {self._offset[index]}"
        return f"{self.name}: shard {path.name!r}, {called!r}"


def _kept(path: Path) -> np.ndarray | None:
    """What an earlier look through the same files has found; None if there was none, or it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return found["found"]
    except Exception:  # Of whatever bytes lie there.
        return None


def _scanned(name: str, number: int, path: Path) -> list[tuple[int, int, int, int]]:
    """Of each sample of a shard: the shard's number, where its image begins, how many bytes it has, and its label."""
    where, rows = f"{name}: shard {path.name!r}", []
    key, image, label = "", None, None

    def whole() -> None:
        if key and (image is None or label is None):
            lacks = "image" if image is None else "label (a file that ends in .cls, with a whole number)"
            raise DataError(f"{where}: sample {key!r} has no {lacks}; write the shard again, or delete it")
        if image is not None and label is not None:
            rows.append((number, *image, label))

    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, called = member.name.rpartition("/")
                stem, _, kind = called.partition(".")
                if (own := f"{folder}/{stem}") != key:
                    whole()
                    key, image, label = own, None, None
                if f".{kind.lower()}" in KINDS:
                    image = (member.offset_data, member.size)
                elif kind.lower() == "cls":
                    label = _label(tar, member, where)
            file.seek(tar.offset)
            ended = file.read(_HEADER) == bytes(_HEADER)
    except (tarfile.TarError, OSError) as error:
        raise _early(where, len(rows), f"{type(error).__name__}: {error}") from error
    if not ended:
        raise _early(where, len(rows), "it has no mark of its end")
    whole()
    return rows


def _early(where: str, count: int, why: str) -> DataError:
    return DataError(
        f"{where} ends early or is damaged, after {count:,} whole samples ({why}); fetch or write it again (shards are plain "
        "tar files, not compressed ones)"
    )


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> int:
    file = tar.extractfile(member)
    written = b"" if file is None else file.read()
    try:
        label = int(written)
    except ValueError:
        raise DataError(f"{where}: label {member.name!r} must be a whole number, got {written[:20]!r}") from None
    if abs(label) >= MOST_CLASSES:
        raise DataError(
            f"{where}: label {member.name!r} is {written[:20]!r}, and labels count classes from 0 to at most "
            f"{MOST_CLASSES:,}; mend it"
        )
    return label
