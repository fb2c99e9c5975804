"""Where encoded images come from: a folder or the Hugging Face hub, and what tells whether they have changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.data.images import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


_LAYOUT = (
    "a folder in the hub's layout holds files such as train-00000-of-00001.parquet and test-00000-of-00001.parquet"
)
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
            files = sorted(path for path in _walk(self.path) if path.is_file())
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

        try:
            with _quiet():
                splits = datasets.load_dataset(str(self.path), cache_dir=str(scratch))
        except Exception as error:
            raise DataError(
                f"data folder {self.name!r} can't be read: {_reason(error)}; fetch or write its files again ({_LAYOUT})"
            ) from error
        _check_class_names(self.name, self.path)
        if self.fingerprint() != fingerprint:
            raise DataError(f"data folder {self.name!r} has changed while it was read; load it again when it is whole")
        return _by_name(splits)


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


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder, onerror=_refuse, followlinks=True):
        yield from (Path(parent) / file for file in files)


def _refuse(error: OSError) -> None:
    raise error


def _check_class_names(name: str, folder: Path) -> None:
    """Refuse files whose labels count through different classes: `datasets` reads all with the names of the first."""
    first: dict[str, tuple[Path, list[str]]] = {}
    for path in sorted(path for path in _walk(folder) if path.suffix in (".parquet", ".arrow")):
        written = json.loads((_schema(path).metadata or {}).get(b"huggingface", b"{}"))
        for column, feature in written.get("info", {}).get("features", {}).items():
            names = feature.get("names") if isinstance(feature, dict) else None
            if not names:
                continue
            other, others = first.setdefault(column, (path, names))
            if names != others:
                raise DataError(
                    f"data folder {name!r}: labels in column {column!r} stand for other classes in {path.relative_to(folder)} "
                    f"({_listed(names)}) than in {other.relative_to(folder)} ({_listed(others)}); encode all splits by one "
                    "list, with datasets' cast_column and ClassLabel(names=[...]), before they are written"
                )


def _schema(path: Path) -> pyarrow.Schema:
    import pyarrow.parquet

    if path.suffix == ".parquet":
        return pyarrow.parquet.read_schema(path)
    with pyarrow.memory_map(str(path)) as stream:
        try:
            return pyarrow.ipc.open_stream(stream).schema
        except pyarrow.ArrowInvalid:
            return pyarrow.ipc.open_file(stream).schema


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _by_name(splits: Any) -> dict[str, Dataset]:
    return {str(name): rows for name, rows in splits.items()}


def _reason(error: BaseException) -> str:
    """The first cause's first line: `datasets` wraps what went wrong in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]
