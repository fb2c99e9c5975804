"""Where encoded images come from: a folder or the Hugging Face hub, and what tells whether they have changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.data.batching import DataError
from apical.data.columns import check_class_names
from apical.files import full

if TYPE_CHECKING:
    from datasets import Dataset


_LAYOUT = (
    "a folder in the hub's layout holds files such as train-00000-of-00001.parquet and test-00000-of-00001.parquet"
)
_UNREAD = re.compile(r"::|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_PATTERN = re.compile(rf"{_UNREAD.pattern}|[\[\]*?\ud800-\udfff]")
_LONGEST = 200  # bytes of a folder's name that `datasets` can make names of its own from
_HUB_TIMEOUT = 10.0  # seconds


class UnreachableError(DataError):
    """The hub can't be asked."""


@dataclass(frozen=True)
class Folder:
    """A local folder in the hub's layout (parquet, arrow, image folders, ...)."""

    name: str
    path: Path

    @property
    def identity(self) -> str:
        """What the cache knows it by, whatever path leads to it."""
        return f"folder {self.path}"

    def fingerprint(self) -> str:
        """Changes with the files' names, sizes and times of modification.

        Raises:
            DataError: if there are no files, or they can't be looked at.
        """
        try:
            files = self._files()
            seen = [(str(path.relative_to(self.path)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        except OSError as error:
            raise DataError(f"data folder {self.name!r} can't be read: {error}") from error
        if not seen:
            raise DataError(f"data folder {self.name!r} is empty; {_LAYOUT}")
        return hashlib.sha256(repr(seen).encode()).hexdigest()

    def open(self, scratch: Path, fingerprint: str | None) -> dict[str, Dataset]:
        """Split name -> rows. What `datasets` unpacks on the way lies in `scratch`.

        Raises:
            DataError: if the files can't be read.
        """
        import datasets

        place = _plainly(self.path, self._files(), scratch)
        try:
            with _quiet():
                splits = datasets.load_dataset(str(place), cache_dir=str(scratch))
        except Exception as error:
            if (cause := full(error)) is not None:  # It was unpacking into the cache.
                raise cause from error
            reason = _reason(error).replace(str(place), str(self.path))
            raise DataError(
                f"data folder {self.name!r} can't be read: {reason}; fetch or write its files again ({_LAYOUT})"
            ) from error
        check_class_names(self.name, self.path, self._files())
        if self.fingerprint() != fingerprint:
            raise DataError(f"data folder {self.name!r} has changed while it was read; load it again when it is whole")
        return _by_name(splits)

    def unread(self, scratch: Path) -> list[str]:
        """Data files that are in no split, as their names say of none, once `open` has read the others."""
        import datasets

        mirror = scratch / "source"
        place = mirror if mirror.exists() else self.path
        found: Any = datasets.load_dataset_builder(str(place), cache_dir=str(scratch)).config.data_files
        read = {Path(file) for files in (found or {}).values() for file in files}
        kinds = {file.suffix for file in read}
        names = (file.relative_to(self.path) for file in self._files())
        return [str(one) for one in names if one.suffix in kinds and not _hidden(one) and place / one not in read]

    def _files(self) -> list[Path]:
        """All files, once none is seen that can't be read as one.

        Raises:
            DataError: naming a link to nowhere, or a pipe or device, which might have no end.
        """
        found = []
        for path in sorted(_walk(self.path)):
            name = path.relative_to(self.path)
            where = f"data folder {self.name!r}: {str(name)!r}"
            if path.is_file():
                found.append(path)
                if _UNREAD.search(str(name)) and not _hidden(name):
                    raise DataError(
                        f"{where} has '::' or a line break in its name, which `datasets` passes over; rename it"
                    )
            elif not _hidden(name):
                if path.is_symlink() and not path.exists():
                    raise DataError(
                        f"{where} is a link to {str(path.readlink())!r}, which is not there; fetch it, or delete the link"
                    )
                raise DataError(f"{where} is no file but a pipe, a socket or a device; take it out of the folder")
        return found


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub."""

    name: str

    @property
    def identity(self) -> str:
        """What the cache knows it by."""
        return f"hub {self.name}"

    def fingerprint(self) -> str | None:
        """The revision.

        Raises:
            UnreachableError: if the hub doesn't answer.
            DataError: if the hub has no such data set, or doesn't show it to this user.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return HfApi().dataset_info(self.name, timeout=_HUB_TIMEOUT).sha
        except RepositoryNotFoundError as error:
            raise DataError(
                f"data set {self.name!r}: there is no such folder here, and the Hugging Face hub has no data set of that "
                "name that it would show you; check the spelling, or log in (hf auth login) if it is private or gated"
            ) from error
        except Exception as error:  # Whatever else fails between here and there: no answer.
            raise self._unreachable(error) from error

    def open(self, scratch: Path, fingerprint: str | None) -> dict[str, Dataset]:
        """Split name -> rows, at revision `fingerprint`; None: what `datasets` itself has kept from earlier.

        Raises:
            DataError: if the data set can't be had.
        """
        import datasets

        try:
            with _quiet():
                return _by_name(datasets.load_dataset(self.name, revision=fingerprint))
        except ConnectionError as error:
            raise self._unreachable(error) from error
        except Exception as error:
            raise DataError(
                f"data set {self.name!r} can't be loaded from the Hugging Face hub: {_reason(error)}; download the files "
                f"that you want and give their folder ({_LAYOUT})"
            ) from error

    def unread(self, scratch: Path) -> list[str]:
        """Files that are in no split: none, as the hub's splits are what it says they are."""
        return []

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"data set {self.name!r}: there is no such folder here, and the Hugging Face hub can't be reached "
            f"({_reason(error)}); without a network, give a local folder in the hub's layout (such as ./mnist), or use "
            "'digits'; if datasets.load_dataset has loaded it here before, set HF_HUB_OFFLINE=1"
        )


def resolve(name: str) -> Folder | Hub:
    """What `name` means: a folder if there is one, else a data set on the hub.

    Raises:
        DataError: if `name` is a file, or looks like a folder that doesn't exist.
    """
    path = Path(name)
    with suppress(RuntimeError):  # "~somebody" that isn't known here
        path = path.expanduser()
    if name and path.is_dir():
        return Folder(name, path.resolve())
    if name and path.exists():
        raise DataError(f"data {name!r} is a file; give the folder that it lies in ({_LAYOUT})")
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        return Hub(name)
    raise DataError(
        f"data folder {name!r} does not exist (looked for {path.absolute()}); give an existing folder, a name on the "
        "Hugging Face hub such as 'ylecun/mnist', or 'digits'"
    )


def offline_by_choice() -> bool:
    """Whether the user has told Hugging Face's libraries to stay off the network (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`: they say little, and would draw over ours."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _plainly(folder: Path, files: list[Path], scratch: Path) -> Path:
    """A folder of these files whose name `datasets` takes for one, and not for a pattern or for a chain of URLs."""
    if not _PATTERN.search(str(folder)) and all(len(os.fsencode(part)) <= _LONGEST for part in folder.parts):
        return folder
    mirror = scratch / "source"
    if _PATTERN.search(str(mirror)):
        raise DataError(
            f"data folder {str(folder)!r} and cache folder {str(scratch)!r} both have names with []*?, '::' or a line break, "
            "which `datasets` can't read; name another cache folder by cache= or $APICAL_CACHE"
        )
    for file in files:
        link = mirror / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return mirror


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder, onerror=_refuse, followlinks=True):
        yield from (Path(parent) / file for file in files)


def _hidden(name: Path) -> bool:
    """Whether `datasets` passes over a file of this name."""
    return any(part.startswith((".", "__")) for part in name.parts)


def _refuse(error: OSError) -> None:
    raise error


def _by_name(splits: Any) -> dict[str, Dataset]:
    return {str(name): rows for name, rows in splits.items()}


def _reason(error: BaseException) -> str:
    """The first cause's first line: `datasets` wraps what went wrong in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]
