"""What a name stands for, as a data set to be streamed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apical.data.augment import ResizedCrop
from apical.data.batching import DataError
from apical.data.columns import TEST_SPLITS, Choice, pick_image, pick_label, roles_of
from apical.data.data_set import ImageData
from apical.data.source import Hub, resolve
from apical.data.streaming.pixels import Resize, UndecodableError, opened
from apical.data.streaming.sources import ClassFolders, Parquet, Source
from apical.data.streaming.stream import Reading, Stream
from apical.data.streaming.tar import Shards
from apical.files import cache_folder

LAYOUTS = (
    "a folder to be streamed holds train/ and val/ with a folder of images for each class, tar shards such as "
    "train-000000.tar, or parquet files such as train-00000-of-00008.parquet"
)
_PEEKED = 100
"""Images that are looked at for the first one that can be decoded."""

Open = Callable[[str, tuple[str, ...] | None], Source]
"""open(split, class names of the training split) -> its source."""


def stream(
    name: str,
    *,
    image_size: int | None = None,
    part: ResizedCrop | None = None,
    reading: Reading | None = None,
    cache: Path | None = None,
    choice: Choice | None = None,
) -> ImageData:
    """The data set of a name, whose images are read and decoded while it is learned from. All have three channels.

    Args:
        name: a folder (see `LAYOUTS`), or a data set on the Hugging Face hub that is kept as parquet files.
        image_size: pixels of each side that images are brought to: their shorter side to 256/224 of it, and the middle is cut
            out. None: all have one size.
        part: what is cut out of training images instead, of random size and place.
        reading: buffer, threads, and what becomes of images that can't be decoded.
        cache: where it is kept what tar shards hold. None: as for `load`.
        choice: which splits and columns.

    Raises:
        DataError: if there is no such data, or it is damaged; and, by the batches, for images that can't be decoded.
    """
    reading, choice = reading or Reading(), choice or Choice()
    splits, source_of = _found(name, cache_folder(cache), choice)
    roles = roles_of(splits, name, choice)
    train = source_of(roles["train"], None)
    sources = {role: train if role == "train" else source_of(split, train.class_names) for role, split in roles.items()}
    for role, source in sources.items():
        if not len(source.labels):
            raise DataError(f"{source.name} is empty, so there is nothing to {_PURPOSES[role]}")
        if source.class_names and train.class_names and source.class_names != train.class_names:
            raise DataError(
                f"{source.name}: labels stand for other classes than in the training split; encode both by one list of names, "
                "with datasets' cast_column and ClassLabel(names=[...]), before they are written"
            )
    names = train.class_names or tuple(str(one) for one in range(1 + int(train.labels.max())))
    shape = (0, 0) if image_size is not None else _first_size(train)
    streams = {
        role: Stream(source, Resize(image_size, shape, part if role == "train" else None), reading)
        for role, source in sources.items()
    }
    return ImageData(name, classes=len(names), class_names=names, called=roles, **streams)


_PURPOSES = {"train": "train on", "test": "test on", "validation": "choose settings by"}


def _first_size(source: Source) -> tuple[int, int]:
    """Height and width of the first image that can be decoded."""
    why: Exception | None = None
    for index in range(min(_PEEKED, len(source.labels))):
        try:
            image = opened(source.read(index))
            return image.height, image.width
        except UndecodableError as error:
            why = error
    raise DataError(f"{source.where(0)}: neither this image nor the next can be decoded: {why}; fetch the data again")


def _found(name: str, cache: Path, choice: Choice) -> tuple[Sequence[str], Open]:
    """The splits that there are, and what opens one."""
    wanted = ["train", *((choice.test_split,) if choice.test_split else TEST_SPLITS)]
    wanted += [choice.validation_split] if choice.validation_split else []
    place = resolve(name) if name != "digits" else None
    if place is None:
        raise DataError(f"digits are in memory already; leave stream out ({LAYOUTS})")
    if isinstance(place, Hub):
        return _on_the_hub(place, wanted, choice)
    path = place.path
    folders = {one.name: one for one in path.iterdir() if one.is_dir()}
    files = sorted(str(one.relative_to(path)) for one in _tables(path))
    shards, tables = (
        {
            split: own
            for split in wanted
            if (own := [file for file in files if file.endswith(kind) and _of(split, file)])
        }
        for kind in (".tar", ".parquet")
    )
    if shards:
        return list(shards), lambda split, _: Shards(_told(name, split), [path / one for one in shards[split]], cache)
    if tables:
        return list(tables), lambda split, _: _parquet(
            name, split, [f"{path / one}" for one in tables[split]], None, choice
        )
    if compressed := [file for file in files if re.search(r"\.(tar\.\w+|tgz)$", file)]:
        raise DataError(
            f"data folder {name!r}: {compressed[0]!r} is compressed; unpack it to a plain .tar, or to files"
        )
    if not files and "train" in folders:
        return [one for one in wanted if one in folders], (
            lambda split, names: ClassFolders(_told(name, split), folders[split], names)
        )
    raise DataError(f"data folder {name!r} can't be streamed, it has no train split; {LAYOUTS}")


def _tables(path: Path) -> list[Path]:
    """Shards of any kind in a folder or the folders in it; no deeper, where a million images may lie."""
    kinds = re.compile(r"\.(tar|tar\.\w+|tgz|parquet)$")
    near = [one for folder in (path, *(one for one in path.iterdir() if one.is_dir())) for one in folder.iterdir()]
    return [one for one in near if kinds.search(one.name) and not one.name.startswith(".")]


def _on_the_hub(place: Hub, wanted: Sequence[str], choice: Choice) -> tuple[Sequence[str], Open]:
    from huggingface_hub import HfFileSystem

    revision = place.fingerprint()
    system = HfFileSystem()
    root = f"datasets/{place.name}@{revision}"
    try:
        files = sorted(str(file) for file in system.find(root) if str(file).endswith(".parquet"))
    except Exception as error:
        raise DataError(
            f"data set {place.name!r} can't be read from the Hugging Face hub: {error}; try again"
        ) from error
    own = {split: [file for file in files if _of(split, file.removeprefix(root))] for split in wanted}
    own = {split: some for split, some in own.items() if some}
    if not own:
        raise DataError(
            f"data set {place.name!r} has no parquet files to be streamed from the Hugging Face hub; download it (hf download "
            f"--repo-type dataset {place.name} --local-dir FOLDER), and give the folder ({LAYOUTS})"
        )
    return list(own), lambda split, _: _parquet(place.name, split, own[split], system, choice)


def _parquet(name: str, split: str, files: Sequence[str], system: Any, choice: Choice) -> Parquet:
    if system is None:
        from fsspec.implementations.local import LocalFileSystem

        system = LocalFileSystem()
    columns = (partial(pick_image, given=choice.image_column), partial(pick_label, given=choice.label_column))
    return Parquet(_told(name, split), files, system, *columns)


def _of(split: str, file: str) -> bool:
    """Whether a file's name or its folder says that it belongs to a split.

    >>> _of("train", "imagenet1k-train-0000.tar"), _of("val", "data/validation-0.parquet"), _of("val", "val/0.parquet")
    (True, False, True)
    """
    return re.search(rf"(^|[/_.-]){re.escape(split)}([/_.-]|$)", file.rpartition(".")[0]) is not None


def _told(name: str, split: str) -> str:
    return f"{name}, split {split!r}"
