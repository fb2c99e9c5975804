"""Which splits, columns and classes of a data set are meant, whatever its writer called them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.data.batching import DataError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Features

TEST_SPLITS = ("test", "validation", "valid", "val")
_IMAGE_COLUMNS = ("image", "img", "images")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target")


@dataclass(frozen=True)
class Choice:
    """Which split and columns to take. None: found by name and type."""

    test_split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    validation_split: str | None = None

    @property
    def identity(self) -> dict[str, str | None]:
        """What the cache knows it by: as it was before there were validation splits, where there is none."""
        given = dataclasses.asdict(self)
        return given if self.validation_split else {k: v for k, v in given.items() if k != "validation_split"}


def roles_of(splits: Collection[str], name: str, choice: Choice) -> dict[str, str]:
    """Role ("train", "test", and "validation" if one is chosen) -> the split that has it.

    Raises:
        DataError: if there is none, or one split would be tested on and chosen by.
    """
    wanted = {"train": ("train",), "test": (choice.test_split,) if choice.test_split else TEST_SPLITS}
    if choice.validation_split:
        wanted["validation"] = (choice.validation_split,)
    roles = {role: _pick_split(splits, name, role, usual) for role, usual in wanted.items()}
    for role in ("train", "test"):
        if roles.get("validation") == roles[role]:
            raise DataError(
                f"{name}: validation={choice.validation_split!r} is the split that it {role}s on; name another one, or hold a "
                "part of the training split out: validation=0.1"
            )
    return roles


def _pick_split(splits: Collection[str], name: str, role: str, wanted: tuple[str, ...]) -> str:
    for split in wanted:
        if split in splits:
            return split
    has = ", ".join(map(repr, splits)) or "none"
    way_out = {
        "train": "add a file or rename one, such as",
        "test": "choose one by apical.data.load(..., test_split=), or add a file",
        "validation": "choose one of these, hold a part of the training split out (validation=0.1), or add a file",
    }[role]
    raise DataError(
        f"{name} has no {role} split (looked for {', '.join(map(repr, wanted))}); its splits are {has}; "
        f"{way_out} {role}-00000-of-00001.parquet"
    )


def pick_image(features: Features, where: str, given: str | None) -> str:
    """The column of images, by its type and name, or the one that is given.

    Raises:
        DataError: if there is none, or it could be several.
    """
    import datasets

    def encoded(feature: Any) -> bool:  # What an image column looks like when its writer didn't say that it is one.
        binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        return binary or (isinstance(feature, dict) and "bytes" in feature)

    certain = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    possible = [name for name, feature in features.items() if encoded(feature)]
    return _pick(features, where, given, "image", "images or encoded bytes", _IMAGE_COLUMNS, certain, possible)


def pick_label(features: Features, where: str, given: str | None) -> str:
    """The column of labels, by its type and name, or the one that is given.

    Raises:
        DataError: if there is none, or it could be several.
    """
    import datasets

    def whole(feature: Any) -> bool:
        return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint"))

    certain = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    possible = [name for name, feature in features.items() if whole(feature)]
    kind = "ClassLabel or whole numbers (text becomes ClassLabel by datasets' class_encode_column)"
    return _pick(features, where, given, "label", kind, _LABEL_COLUMNS, certain, possible)


def _pick(
    features: Features,
    where: str,
    given: str | None,
    role: str,
    kind: str,
    usual: tuple[str, ...],
    certain: list[str],
    possible: list[str],
) -> str:
    columns = ", ".join(f"{name!r} ({_type(feature)})" for name, feature in features.items())
    if given is not None:
        if given not in features:
            raise DataError(f"{where} has no column {given!r} ({role}_column); its columns are {columns}")
        if given not in certain + possible:
            raise DataError(
                f"{where}: column {given!r} ({role}_column) holds {_type(features[given])}, but has to hold {kind}"
            )
        return given
    by_name = {name.lower(): name for name in (*possible, *certain)}
    for name in usual:
        if name in by_name:
            return by_name[name]
    if len(certain) == 1:
        return certain[0]
    if certain:
        raise DataError(
            f"{where} has {len(certain)} columns of {role}s: {columns}; name the one that is meant {role!r}, or choose it by "
            f"apical.data.load(..., {role}_column=)"
        )
    raise DataError(
        f"{where} has no {role} column, of {kind}; its columns are {columns}; if one of them is it, name it {role!r}, or choose "
        f"it by apical.data.load(..., {role}_column=)"
    )


def _type(feature: Any) -> str:
    name = type(feature).__name__
    return feature.dtype if name == "Value" else name


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
