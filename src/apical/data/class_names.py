"""Names of classes, as parquet and arrow files hold them beside their columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from apical.data.images import DataError

if TYPE_CHECKING:
    import pyarrow


def check_class_names(name: str, folder: Path, files: Iterable[Path]) -> None:
    """Refuse files whose labels count through different classes: `datasets` reads all with the names of the first.

    Raises:
        DataError: naming two such files, or one that can't be read.
    """
    first: dict[str, tuple[Path, list[str]]] = {}
    for path in sorted(path for path in files if path.suffix in (".parquet", ".arrow")):
        try:
            names_of = _class_names(path)
        except Exception as error:  # Of bytes that are no table, or of a table that says something else of itself.
            raise DataError(
                f"data folder {name!r}: what {str(path.relative_to(folder))!r} says of its columns can't be read: "
                f"{type(error).__name__}: {error}; fetch or write it again"
            ) from error
        for column, names in names_of.items():
            other, others = first.setdefault(column, (path, names))
            if names != others:
                raise DataError(
                    f"data folder {name!r}: labels in column {column!r} stand for other classes in {path.relative_to(folder)} "
                    f"({_listed(names)}) than in {other.relative_to(folder)} ({_listed(others)}); encode all splits by one "
                    "list, with datasets' cast_column and ClassLabel(names=[...]), before they are written"
                )


def _class_names(path: Path) -> dict[str, list[str]]:
    """Column -> names of classes, of the columns that have them."""
    written = json.loads((_schema_of(path).metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {}).items()
    found = {column: feature.get("names") for column, feature in features if isinstance(feature, dict)}
    return {column: names for column, names in found.items() if names}


def _schema_of(path: Path) -> pyarrow.Schema:
    import pyarrow.parquet

    with path.open("rb") as stream:  # Arrow itself opens no name that isn't UTF-8.
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_schema(stream)
        try:
            return pyarrow.ipc.open_stream(stream).schema
        except pyarrow.ArrowInvalid:
            stream.seek(0)
            return pyarrow.ipc.open_file(stream).schema


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
