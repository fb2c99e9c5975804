"""Where a stream's encoded images lie: in class folders, in tar shards, in parquet files."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from typing_extensions import override

from apical.data.batching import DataError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

KINDS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
"""Endings of images' names, in lower case."""
OPEN_FILES = 4
MOST_CLASSES = 1_000_000
"""A label as large as this is none: it would make a network of as many outputs."""


class Source(Protocol):
    """The encoded images of one split, with their labels.

    Attributes:
        name: of the data set and the split, for messages. labels: int64 [N].
        blocks: samples in each part that is read at a stretch; those of a block have consecutive numbers.
        class_names: if the source knows them.
    """

    name: str
    labels: np.ndarray
    blocks: Sequence[int]
    class_names: tuple[str, ...] | None

    def read(self, index: int) -> bytes:
        """One encoded image.

        Raises:
            DataError: if it isn't there any more.
        """
        ...

    def block(self, number: int) -> list[bytes] | None:
        """All encoded images of a block, where one costs as much as all; None where each is read by itself."""
        ...

    def where(self, index: int) -> str:
        """What a sample is called by whoever has to find it."""
        ...


class ClassFolders(Source):
    """A folder with a folder of images for each class, as ImageNet is kept.

    Args:
        name: for messages. path: the folder. class_names: of the training split, for others; None: they are found.

    Raises:
        DataError: if there is no image, a class has none, or isn't among the names.
    """

    def __init__(self, name: str, path: Path, class_names: tuple[str, ...] | None = None) -> None:
        self.name, self.path = name, path
        found = sorted(one.name for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
        if not found:
            raise DataError(
                f"{name}: folder {str(path)!r} has no folders, of one class each; sort its images into folders named after "
                "their classes"
            )
        self.class_names = class_names or tuple(found)
        numbers = {one: number for number, one in enumerate(self.class_names)}
        if strange := [one for one in found if one not in numbers]:
            raise DataError(
                f"{name}: class folder {strange[0]!r} is none of the {len(numbers)} of the training split; give both the same "
                "class folders"
            )
        self._files: list[tuple[str, str]] = []
        labels, self._empty = [], [one for one in self.class_names if one not in found]
        for folder in found:
            files = sorted(one.name for one in (path / folder).iterdir() if one.suffix.lower() in KINDS)
            if not files:
                raise DataError(
                    f"{name}: class folder {folder!r} has no images (names that end in {', '.join(sorted(KINDS))}); put some "
                    "there, or delete it"
                )
            self._files += [(folder, file) for file in files if not file.startswith(".")]
            labels += [numbers[folder]] * (len(self._files) - len(labels))
        self.labels = np.array(labels, dtype=np.int64)
        # Files are read in any order at the same cost.
        self.blocks = np.ones(len(labels), dtype=np.int64).tolist()

    @override
    def read(self, index: int) -> bytes:
        try:
            return self.path.joinpath(*self._files[index]).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(index)}: can't be read: {error}; put it back, and resume the run") from error

    @override
    def block(self, number: int) -> list[bytes] | None:
        return None

    @override
    def where(self, index: int) -> str:
        return f"{self.name}: {'/'.join(self._files[index])!r}"


class Parquet(Source):
    """Parquet files, each of several row groups, here or on the hub.

    Args:
        name: for messages. files: their paths in `system`, an fsspec file system.
        image_column, label_column: how to find them in the columns' features, given a place for messages.

    Raises:
        DataError: if a file can't be read, or has no such columns.
    """

    def __init__(self, name: str, files: Sequence[str], system: Any, image: Any, label: Any) -> None:
        import datasets

        self.name, self._files, self._system = name, list(files), system
        self._open: dict[int, pyarrow.parquet.ParquetFile] = {}
        self._lock = threading.Lock()
        self.blocks, self._places, labels = [], [], []
        self.class_names = None
        self._column = ""
        for number, path in enumerate(self._files):
            file = self._file(number)
            features = datasets.Features.from_arrow_schema(file.schema_arrow)
            where = f"{name}, {Path(path).name}"
            column, given = image(features, where), label(features, where)
            own = getattr(features[given], "names", None)
            if number and (column != self._column or (own and self.class_names and tuple(own) != self.class_names)):
                raise DataError(f"{where}: its columns or classes are others than those of {Path(self._files[0]).name}")
            self.class_names = self.class_names or (tuple(own) if own else None)
            self._column = column
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                self._places.append((number, group, first))
                self.blocks.append(rows)
                first += rows
            values = self._reading(number, lambda one, given=given: one.read(columns=[given])).column(0)
            if values.null_count:
                raise DataError(f"{where}: a label in column {given!r} is missing; drop the rows that have none")
            labels.append(_whole(values, f"{where}: column {given!r}"))
        self.labels = np.concatenate(labels) if labels else np.zeros(0, dtype=np.int64)
        self._ends = np.cumsum(self.blocks)

    def _file(self, number: int) -> pyarrow.parquet.ParquetFile:
        import pyarrow.parquet

        if number not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.pop(next(iter(self._open))).close(force=True)
            path = self._files[number]
            try:
                self._open[number] = pyarrow.parquet.ParquetFile(self._system.open(path, "rb"))
            except Exception as error:  # Of bytes that are no table, or of a network.
                raise self._damaged(number, error) from error
        return self._open[number]

    def _reading(self, number: int, read: Any) -> Any:
        try:
            return read(self._file(number))
        except DataError:
            raise
        except Exception as error:
            raise self._damaged(number, error) from error

    def _damaged(self, number: int, error: Exception) -> DataError:
        return DataError(
            f"{self.name}: shard {Path(self._files[number]).name!r} ends early, is damaged or can't be reached "
            f"({type(error).__name__}: {error}); fetch or write it again, and resume the run"
        )

    @override
    def read(self, index: int) -> bytes:
        block = int(np.searchsorted(self._ends, index, side="right"))
        return self.block(block)[index - int(self._ends[block]) + self.blocks[block]]

    @override
    def block(self, number: int) -> list[bytes]:
        file, group, _ = self._places[number]
        with self._lock:
            table = self._reading(file, lambda one: one.read_row_group(group, columns=[self._column]))
        cells = table.column(0).to_pylist()
        return [(cell.get("bytes") if isinstance(cell, dict) else cell) or b"" for cell in cells]

    @override
    def where(self, index: int) -> str:
        block = int(np.searchsorted(self._ends, index, side="right"))
        file, _, first = self._places[block]
        row = first + index - int(self._ends[block]) + self.blocks[block]
        return f"{self.name}: {Path(self._files[file]).name!r}, row {row}"


def _whole(values: pyarrow.ChunkedArray, where: str) -> np.ndarray:
    """Labels as whole numbers, int64 [N]."""
    import pyarrow

    try:
        labels = values.cast(pyarrow.int64()).to_numpy()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{where} has labels that can't be numbers of classes ({error}); mend them") from error
    if len(labels) and abs(labels).max() >= MOST_CLASSES:
        row = int(abs(labels).argmax())
        raise DataError(
            f"{where}, row {row}: label {labels[row]}, and labels count classes from 0 to at most {MOST_CLASSES:,}; mend it"
        )
    return labels
