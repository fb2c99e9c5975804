"""From rows with encoded images to files of plain bytes."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apical.data.batching import DataError
from apical.data.columns import Choice, pick_image, pick_label, roles_of
from apical.data.images import check_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")  # and "I;16" with its byte orders
_MOST_CLASSES = 100_000
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class _Table:
    """One split's encoded images and checked labels."""

    where: str
    rows: Dataset
    column: str
    labels: np.ndarray  # int64 [N]


class _ColouredError(Exception):
    """An image with colour among images that were grey so far."""


def decode(splits: dict[str, Dataset], folder: Path, name: str, choice: Choice) -> dict[str, Any]:
    """Write both splits' images and labels as plain bytes into `folder`.

    Args:
        splits: split name -> rows.
        folder: an empty folder.
        name: the data set's name, for errors.
        choice: which split and columns.

    Returns:
        What reading needs: {"class_names": [...], "called": {role: split}, "arrays": {file name: {"dtype", "shape", "crc32"}}}.

    Raises:
        DataError: if the rows aren't images of one size with labels.
    """
    roles = roles_of(splits, name, choice)
    tables, class_names = _tables(splits, name, choice, roles)
    for channels in (1, 3):
        try:
            return {"class_names": class_names, "called": roles, "arrays": _write(tables, folder, name, channels)}
        except _ColouredError:
            continue
    raise AssertionError("three channels hold any image")


def _tables(
    splits: dict[str, Dataset], name: str, choice: Choice, roles: dict[str, str]
) -> tuple[dict[str, _Table], list[str]]:
    """All that can be known before an image is decoded."""
    tables, names = {}, None
    for role, split in roles.items():
        rows, where = splits[split], f"{name}, split {split!r}"
        if len(rows) == 0:
            raise DataError(f"{where} has no rows")
        image = pick_image(rows.features, where, choice.image_column)
        label = pick_label(rows.features, where, choice.label_column)
        own = getattr(rows.features[label], "names", None)
        if names and own and names != own:
            raise DataError(
                f"{where}: labels in column {label!r} stand for other classes than those of the training split; encode both by "
                "one list, with datasets' cast_column and ClassLabel(names=[...])"
            )
        names = names or own
        encoded = rows.select_columns([image]).with_format("arrow")
        tables[role] = _Table(where, encoded, image, _labels(rows, label, where))
    classes = len(names) if names else max(1, *(1 + int(table.labels.max()) for table in tables.values()))
    if classes > _MOST_CLASSES:
        raise DataError(
            f"{name}: labels up to {classes - 1} are hardly classes; choose the column that holds them, with values from 0, by "
            "apical.data.load(..., label_column=), or name it 'label'"
        )
    for table in tables.values():
        check_labels(torch.from_numpy(table.labels), classes, table.where)
    return tables, list(names or map(str, range(classes)))


def _labels(rows: Dataset, column: str, where: str) -> np.ndarray:
    import pyarrow

    table: Any = rows.select_columns([column]).with_format("arrow")[:]
    values = table.column(0)
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise DataError(f"{where}, row {row}: label in column {column!r} is missing; drop the rows that have none")
    try:
        return values.cast(pyarrow.int64()).to_numpy().astype(np.int64)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{where}: labels in column {column!r} can't be classes: {error}") from error


def _write(tables: dict[str, _Table], folder: Path, name: str, channels: int) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    size: tuple[int, int] | None = None
    with _progress(sum(len(table.rows) for table in tables.values()), name) as advance:
        for role, table in tables.items():
            file, crc = f"{role}-images.u8", 0
            with (folder / file).open("wb") as stream:
                for row, image in enumerate(_images(table)):
                    where = f"{table.where}, row {row}"
                    if size is None:
                        size = image.size
                    if image.size != size:
                        raise DataError(
                            f"{where}: image of {_size(image.size)} pixels among images of {_size(size)}; bring all to "
                            "one size first, with datasets' map and Pillow's resize or crop, or stream them: --stream "
                            "--image-size SIZE"
                        )
                    pixels = _pixels(image, channels, where)
                    crc = zlib.crc32(pixels, crc)
                    stream.write(pixels)
                    advance()
            assert size is not None
            arrays[file] = {"dtype": "|u1", "shape": [len(table.rows), channels, size[1], size[0]], "crc32": crc}
            labels = table.labels.astype("<i8").tobytes()
            (folder / f"{role}-labels.i64").write_bytes(labels)
            arrays[f"{role}-labels.i64"] = {"dtype": "<i8", "shape": [len(table.rows)], "crc32": zlib.crc32(labels)}
    return arrays


def _images(table: _Table) -> Iterator[Image]:
    import datasets

    feature = datasets.Image()
    for start in range(0, len(table.rows), _ROWS_AT_ONCE):
        rows: Any = table.rows[start : start + _ROWS_AT_ONCE]
        for row, cell in enumerate(rows.column(table.column).to_pylist(), start):
            encoded = cell if isinstance(cell, dict) else {"bytes": cell}
            if encoded.get("bytes") is None and encoded.get("path") is None:
                raise DataError(
                    f"{table.where}, row {row}: image in column {table.column!r} is missing; drop such rows"
                )
            try:
                yield feature.decode_example({"bytes": encoded.get("bytes"), "path": encoded.get("path")})
            except Exception as error:  # Pillow's decoders fail in many ways.
                raise DataError(
                    f"{table.where}, row {row}: image can't be decoded: {type(error).__name__}: {error}; "
                    "mend or drop such rows, or fetch the data again"
                ) from error


def _pixels(image: Image, channels: int, where: str) -> bytes:
    """The image's values in the order [C, H, W]. An alpha channel is dropped."""
    if image.mode.startswith(_DEEP):
        raise DataError(
            f"{where}: grey image of more than 8 bits (Pillow mode {image.mode!r}); bring it to 8 bits first: "
            "only you know the range of its values"
        )
    if channels == 1:
        if image.mode not in _GREY:
            raise _ColouredError
        return image.convert("L").tobytes()
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1).tobytes()


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


@contextmanager
def _progress(total: int, name: str) -> Iterator[Callable[[], None]]:
    """Yields what to call after each image; a bar shows only on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    if not sys.stderr.isatty():
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"decoding {name}", total=total)
        yield lambda: bar.advance(task)
