"""Files that are either whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LEFT = re.compile(r"\..*\.(\d+)-[0-9a-f]{8}\.writing")
"""The name of a file that is being written: of what, by which process."""
_LONGEST = 200  # bytes of a name that its file in writing keeps; file systems allow 255
SEAL = "seal"
"""The entry of a JSON object that holds the checksum of all others."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_writing: set[str] = set()


def cache_folder(given: Path | None = None) -> Path:
    """The folder for what can be made again: `given`, else $APICAL_CACHE, else `apical` in $XDG_CACHE_HOME or ~/.cache."""
    if given is not None:
        return Path(given).expanduser().absolute()
    if own := os.environ.get("APICAL_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "apical"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: readers see the old content or the new, whatever happens in between.

    What writers that were killed have left in its folder goes.

    Raises:
        OSError: naming the file and, where the disk is full, what it needs; what was there before is as it was.
    """
    with _told(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in remains(path.parent):
            left.unlink(missing_ok=True)
        short = os.fsencode(path.name)[:_LONGEST].decode(errors="ignore")
        work = path.parent / f".{short}.{os.getpid()}-{secrets.token_hex(4)}.writing"
        _writing.add(work.name)
        try:
            with work.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            work.chmod(0o644)
            work.replace(path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise
        finally:
            _writing.discard(work.name)


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step. Not-a-number is refused: other programs can't read it."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, text)  # Its escapes of what UTF-8 can't hold are those of JSON.


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object for JSON with the checksum of itself as its last entry, by which `read_sealed` knows it for undamaged.

    >>> list(sealed({"step": 3}))
    ['step', 'seal']
    """
    plain = {key: value for key, value in content.items() if key != SEAL}
    return {**plain, SEAL: _checksum(plain)}


def read_sealed(path: Path) -> dict[str, Any]:
    """The object in a JSON file that holds a `sealed` one, without its seal; one that was never sealed as it is.

    Raises:
        ValueError: if it is no JSON, no object, or not what was sealed. OSError: if it can't be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        seal = found.pop(SEAL, None)
        # Without a seal it is of a version that had none; or it is the seal's name that was damaged.
        expected = _checksum(found) if seal is not None or any(map(_is_seal, found.values())) else None
    except RecursionError as error:
        raise ValueError(f"it is no JSON that was written here ({error})") from error
    if seal != expected:
        raise ValueError("its content does not match its checksum, so it was changed or damaged after it was written")
    return found


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_seal(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text in one step. What UTF-8 can't hold (half a surrogate pair) is written as an escape."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def append_text(path: Path, text: str) -> None:
    """Add UTF-8 text to the end of a file.

    Raises:
        OSError: naming the file and, where the disk is full, what it needs.
    """
    content = text.encode()
    with _told(path, len(content)), path.open("ab") as file:
        file.write(content)


def remains(folder: Path) -> list[Path]:
    """Files in `folder` whose writers were killed before they were whole."""
    with suppress(OSError):
        return [one for one in folder.iterdir() if (match := _LEFT.fullmatch(one.name)) and _dead(one, int(match[1]))]
    return []


def delete(folder: Path, names: Iterable[str | Path]) -> None:
    """Delete files in `folder`, what killed writers left beside them, and folders in it that are empty then; nothing else."""
    places: set[Path] = set()
    for path in (folder / name for name in names):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        places |= {parent for parent in path.parents if parent != folder and parent.is_relative_to(folder)}
    for place in sorted({folder, *places}, key=lambda one: len(one.parts), reverse=True):
        for left in remains(place):
            left.unlink(missing_ok=True)
        if place != folder:
            with suppress(OSError):  # It holds what somebody else has put there, or is not there.
                place.rmdir()


def full(error: BaseException | None) -> OSError | None:
    """The error among `error` and its causes that says that a disk is full, if one does."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _dead(file: Path, writer: int) -> bool:
    if writer == os.getpid():  # A number that an earlier process may have had.
        return file.name not in _writing
    if os.name != "posix":
        return False
    try:
        os.kill(writer, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@contextmanager
def _told(path: Path, size: int) -> Iterator[None]:
    """Errors of the system that name `path`, not what it is called while it is written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EFBIG:
            reason += f" ({size:,} bytes, more than this process may write: see ulimit -f)"
        elif error.errno in _FULL:
            reason += f" ({size:,} bytes are needed{_free(path.parent)}); make room there, then start or resume again"
        told = type(error)(f"can't write {path}: {reason}")
        told.errno = error.errno
        raise told from error


def _free(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free:,} are free"
    except OSError:
        return ""
