"""Which files a text is made of, and which of them are held out."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from apical.data.batching import DataError

STANDARD_LIBRARY = "text"
"""The name of the text that every machine has: the sources of Python's standard library."""
PREFIX = "text:"
"""What a file's or a folder's path follows in the name of a text."""
SHARE = 0.05
"""The share of the files that is tested on, and by default that of the rest which settings are chosen by."""
LEFT_OUT = (
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "distutils", "ensurepip", "turtledemo"),
    *("pydoc_data", "encodings"),
)
"""Folders of the standard library that are no part of the text: what is installed beside it, tests, tables and texts written by
programs, and packages that some versions or distributions of Python lack."""
_MACHINES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_WAY_OUT = f"give 'text', the sources of Python's standard library, or '{PREFIX}PATH' of a file or a folder of texts"


@dataclass(frozen=True)
class Parts:
    """The bytes of a text, role by role, with what each is in words.

    Args:
        content: role -> the bytes, of several files in the order of their names, a byte 0 after each.
        called: role -> which files, or which part of the one file.
    """

    content: dict[str, bytes]
    called: dict[str, str]


def is_text(name: str) -> bool:
    """Whether the name of a data set is that of a text.

    >>> is_text("text"), is_text("text:~/books"), is_text("digits")
    (True, True, False)
    """
    return name == STANDARD_LIBRARY or name.startswith(PREFIX)


def parts_of(name: str, share: float = SHARE, seed: int = 0) -> Parts:
    """The training, validation and test bytes of a text.

    Of several files whole ones are held out, by their names alone: 5 % to test on, and of the others the share `share` to choose
    by, at least one of either. A single file is cut: its last 5 % are tested on, and what comes before them is chosen by.

    Args:
        name: see `is_text`. share: between 0 and 1. seed: which files are chosen by.

    Raises:
        DataError: if there is no such text, it is empty, or can't be read; or if there are just two files.
    """
    if name == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        return _held_out(name, root, _standard_library(root), share, seed)
    path = Path(name.removeprefix(PREFIX)).expanduser()
    if not name.removeprefix(PREFIX) or not path.exists():
        raise DataError(f"data {name!r}: there is no file or folder {str(path.absolute())!r}; {_WAY_OUT}")
    if path.is_dir():
        return _held_out(name, path, sorted(_walk(path)), share, seed)
    return _cut(name, path, share)


def _standard_library(root: Path) -> list[Path]:
    found = [path for path in _walk(root, LEFT_OUT) if path.suffix == ".py" and not path.name.startswith(_MACHINES)]
    if not found:
        raise DataError(
            f"data 'text': this Python has no sources of its standard library in {root}; give '{PREFIX}PATH' of a file or a "
            "folder of texts"
        )
    return sorted(found)


def _walk(root: Path, left_out: Collection[str] = ()) -> Iterator[Path]:
    """The files below a folder, without those that are hidden, or in a folder of such a name."""
    for folder, below, files in os.walk(root):
        below[:] = [one for one in below if not one.startswith(".") and one not in left_out]
        yield from (Path(folder, one) for one in files if not one.startswith(".") and Path(folder, one).is_file())


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"data {name!r}: {str(path)!r} can't be read: {error}; mend it, or take it out") from error


def _held_out(name: str, root: Path, files: Sequence[Path], share: float, seed: int) -> Parts:
    texts = {path.relative_to(root).as_posix(): _read(name, path) for path in files}
    # Text has no byte 0, and nearly all else has: the way git tells them apart.
    texts = {place: one for place, one in texts.items() if one and b"\0" not in one}
    if len(texts) < 3:
        raise DataError(
            f"data {name!r}: the folder {str(root)!r} has {len(texts)} text files (of {len(files)} that are not hidden; text has "
            "no byte 0), and whole files are held out, so it takes 3 or more; put more into it, or give one file by its own path"
        )
    test = _first(texts, SHARE, "test")
    rest = [place for place in texts if place not in test]
    validation = _first(rest, share, f"validation {seed}")
    roles = {"test": test, "validation": validation, "train": set(rest) - validation}
    if not roles["train"]:
        raise DataError(
            f"data {name!r}: validation={share} leaves none of {len(texts)} files to train on; hold out fewer, or give more files"
        )
    return Parts(
        {role: b"".join(texts[place] + b"\0" for place in sorted(own)) for role, own in roles.items()},
        {role: f"{len(own):,} of {len(texts):,} files" for role, own in roles.items()},
    )


def _first(places: Sequence[str] | dict[str, bytes], share: float, what: str) -> set[str]:
    """A share of the files, at least one: those whose names' hashes come first, so it hardly changes as files come and go."""
    ordered = sorted(
        places, key=lambda place: hashlib.sha256(f"{what} {place}".encode("utf-8", "surrogateescape")).digest()
    )
    return set(ordered[: max(1, round(share * len(places)))])


def _cut(name: str, path: Path, share: float) -> Parts:
    text = _read(name, path)
    test = len(text) - round(SHARE * len(text))
    validation = test - round(share * test)
    bounds = {"train": (0, validation), "validation": (validation, test), "test": (test, len(text))}
    return Parts(
        {role: text[start:end] for role, (start, end) in bounds.items()},
        {role: f"bytes {start:,} to {end:,} of {len(text):,}" for role, (start, end) in bounds.items()},
    )
