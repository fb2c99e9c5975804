"""Decoded images on disk: whole and checked, or not there.

A decoded data set is a folder `<name>-<what was asked for>-<fingerprint of its source>` with one file of plain bytes per
array and `manifest.json`, which holds their shapes and checksums and is itself checksummed. It is written beside its
place and moved there in one step, so a writer that dies or races leaves nothing that a reader could take for data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from apical.data.batching import DataError
from apical.data.data_set import ImageData
from apical.data.images import Split
from apical.files import write_json

_FORMAT = 1
_BLOCK = 1 << 24  # bytes per step of the checksum


class DamagedError(Exception):
    """What lies in the cache isn't what was written."""


class Cache:
    """Where one data set, loaded in one way, is kept.

    Args:
        root: the cache folder; made when first written to.
        name: begins the names of files.
        identity: what else makes this data set different from others: its source and the columns chosen. JSON.
    """

    def __init__(self, root: Path, name: str, identity: Any) -> None:
        self.root = root
        self.identity = identity
        readable = re.sub(r"[^A-Za-z0-9.]+", "_", Path(name).name)[-40:].strip("._") or "data"
        self.stem = f"{readable}-{_digest([_FORMAT, identity])}"

    def entry(self, fingerprint: str) -> Path:
        """The folder of what a source with this fingerprint decodes to."""
        return self.root / f"{self.stem}-{_digest(fingerprint)}"

    def newest(self) -> Path | None:
        """The latest entry, of whatever fingerprint."""
        written = {path: _modified(path / "manifest.json") for path in self.root.glob(f"{self.stem}-*")}
        return max(written, key=lambda path: written[path], default=None)

    def read(self, entry: Path, name: str, in_memory: bool | None) -> ImageData | None:
        """The data in `entry` under the name `name`, every byte checked; None if there is none.

        Raises:
            DamagedError: if anything differs from what was written.
        """
        try:
            manifest = json.loads((entry / "manifest.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise DamagedError(f"manifest.json: {error}") from error
        try:
            content = manifest["content"]
            if manifest["crc32"] != _checksum(content):
                raise DamagedError("manifest.json doesn't match its own checksum")
            arrays = content["arrays"]
            size = sum(math.prod(array["shape"]) for file, array in arrays.items() if file.endswith("-images.u8"))
            keep = _fits(size) if in_memory is None else in_memory
            splits = {
                role: Split(
                    torch.from_numpy(_array(entry, f"{role}-images.u8", arrays, keep)),
                    torch.from_numpy(_array(entry, f"{role}-labels.i64", arrays, True).astype(np.int64)),
                )
                for role in ("train", "test", "validation")
                if f"{role}-images.u8" in arrays or role != "validation"
            }
            names = tuple(content["class_names"])
            return ImageData(name, classes=len(names), class_names=names, called=content.get("called", {}), **splits)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(str(error)) from error

    def unused(self, entry: Path) -> list[str]:
        """What of the source is not in `entry`: splits and files, in words."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return list(json.loads((entry / "manifest.json").read_bytes())["content"]["unused"])
        return []

    def write(self, entry: Path, decode: Callable[[Path, Path], dict[str, Any]]) -> None:
        """Put into `entry` what `decode(folder, scratch)` writes into `folder` and returns to be kept in the manifest.

        Other fingerprints' entries go, as do the remains of writers that died. Call it within `lock`.

        Raises:
            DataError: if the cache folder can't be written. Errors of `decode` pass through, and leave nothing behind.
        """
        with _writable(self.root):
            for left in self.root.glob(f".{self.stem}-*.writing"):
                shutil.rmtree(left, ignore_errors=True)
            work = self.root / f".{self.stem}-{uuid.uuid4().hex}.writing"
            try:
                (work / "new").mkdir(parents=True)
                (work / "scratch").mkdir()
                content = {"identity": self.identity, **decode(work / "new", work / "scratch")}
                write_json(work / "new" / "manifest.json", {"content": content, "crc32": _checksum(content)})
                _move(work / "new", entry, work / "old")
            finally:
                shutil.rmtree(work, ignore_errors=True)
            for other in self.root.glob(f"{self.stem}-*"):
                if other != entry:
                    shutil.rmtree(other, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process at a time decodes this data set; the others wait and read what it wrote.

        The system frees the lock of a process that dies.
        """
        with contextlib.ExitStack() as stack:
            with _writable(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(self.root / f".{self.stem}.lock"))
            yield


def _array(entry: Path, file: str, arrays: dict[str, Any], keep: bool) -> np.ndarray:
    """An array in memory or, copy-on-write, in its file, so that no user's change reaches the cache."""
    described = arrays[file]
    dtype, shape, path = np.dtype(described["dtype"]), tuple(described["shape"]), entry / file
    expected, found = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if found != expected:
        raise DamagedError(f"{file} has {found} bytes instead of {expected}")
    array = np.fromfile(path, dtype).reshape(shape) if keep else np.memmap(path, dtype, "c", shape=shape)
    crc, data = 0, array.reshape(-1).view(np.uint8).data
    for start in range(0, len(data), _BLOCK):
        crc = zlib.crc32(data[start : start + _BLOCK], crc)
    if crc != described["crc32"]:
        raise DamagedError(f"{file} doesn't match its checksum")
    return array


def _move(new: Path, entry: Path, old: Path) -> None:
    """Put a whole folder in place of what is there, if anything is: damaged, that is."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(entry, old)  # noqa: PTH105
    os.replace(new, entry)  # noqa: PTH105


@contextmanager
def _writable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cache folder {root} can't be written: {error}; make room there, or name another by cache= or $APICAL_CACHE"
        ) from error


def _fits(size: int) -> bool:
    """Whether so many bytes are at most a quarter of this machine's memory."""
    try:
        return size <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
    except (AttributeError, ValueError, OSError):
        return size <= 1 << 31


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
