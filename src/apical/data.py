"""Image-classification data: scikit-learn's digits, or any data set of the Hugging Face hub's layout.

Images are decoded once into one uint8 array per split, kept on disk, checked on reading, and batched by index: from memory
where they fit, else from the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from apical.files import write_json

_FORMAT = 1
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels")


class DataError(ValueError):
    """Data that can't be used, with the way out."""


@dataclass(frozen=True)
class Split:
    """Images with their classes; the arrays may lie on disk.

    images: uint8 [N, C, H, W]. labels: int64 [N].
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The samples of `index` [n]: float32 images [n, C, H, W] from 0 to 1, and int64 labels [n]."""
        images = self.images[index].to(device, non_blocking=True).float().div_(255)
        return images, self.labels[index].to(device, non_blocking=True)


@dataclass(frozen=True)
class ImageData:
    """A data set in two splits."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def features(self) -> int:
        """Values per image, C H W."""
        return int(np.prod(self.shape))


def batches(n: int, size: int, *, generator: torch.Generator, drop_last: bool = False) -> Iterator[Tensor]:
    """One epoch of shuffled indices: tensors of `size` out of 0 ... n - 1, each index once."""
    for index in torch.randperm(n, generator=generator).split(size):
        if len(index) == size or not drop_last:
            yield index


def load(name: str = "digits", *, cache: Path | None = None, in_memory: bool | None = None) -> ImageData:
    """A data set by name.

    Args:
        name: "digits" (1797 images of 8 x 8, bundled with scikit-learn; a fifth of each class is the test split), a name
            on the Hugging Face hub such as "ylecun/mnist" or "uoft-cs/cifar10", or a folder in the hub's layout.
        cache: where decoded images are kept. None: $APICAL_CACHE, or "apical" in the user's cache folder.
        in_memory: read all images into memory. None: if they fit in a quarter of it.

    Raises:
        DataError: if the data is missing, empty, damaged, or no image-classification data.
    """
    if name == "digits":
        return _digits()
    source = _Source(name)
    home = (cache or _cache_folder()) / f"{_slug(name)}-{source.key}"
    found = _read(home, name, in_memory)
    if found is None:
        _decode(source, home)
        found = _read(home, name, in_memory)
        if found is None:
            raise DataError(f"the decoded images in {home} can't be read back; is the disk full or failing?")
    return found


def _digits() -> ImageData:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.tensor(np.rint(bunch.images * (255 / 16)), dtype=torch.uint8).unsqueeze(1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    # Every fifth image of each class in the bundled order, so that the split never depends on a random generator.
    rank = torch.zeros_like(labels)
    for digit in range(10):
        members = (labels == digit).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    test = rank % 5 == 4
    train, held_out = (Split(images[part], labels[part]) for part in (~test, test))
    return ImageData("digits", train, held_out, tuple(map(str, range(10))))


class _Source:
    """Where the encoded images come from, and a key that changes with them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = self._folder()
        self._splits: dict[str, Any] | None = None
        self.key = self._folder_key() if self.folder is not None else self._hub_key()

    def _folder(self) -> Path | None:
        path = Path(self.name).expanduser()
        if path.is_dir():
            if not any(p.is_file() for p in path.rglob("*")):
                raise DataError(f"data folder {self.name} is empty; it needs train and test files in the hub's layout")
            return path
        if path.exists():
            raise DataError(f"data {self.name} is a file; name the folder that holds train and test files")
        looks_like_a_path = self.name.startswith((".", "/", "~", os.sep)) or self.name.count("/") > 1 or not self.name
        if looks_like_a_path:
            raise DataError(
                f"data folder {self.name!r} does not exist; give a folder in the hub's layout, a hub name such as "
                "ylecun/mnist, or digits"
            )
        return None

    def _folder_key(self) -> str:
        assert self.folder is not None
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        seen = [(str(p.relative_to(self.folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        return _digest([str(self.folder.resolve()), seen])

    def _hub_key(self) -> str:
        return _digest([self.name, {name: split._fingerprint for name, split in self.splits().items()}])

    def splits(self) -> dict[str, Any]:
        """Split name -> `datasets.Dataset`."""
        if self._splits is None:
            self._splits = self._open()
        return self._splits

    def _open(self) -> dict[str, Any]:
        import datasets

        shown = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            return dict(datasets.load_dataset(str(self.folder or self.name)))
        except Exception as error:
            reason = str(error.__cause__ or error).split("\n")[0]
            if self.folder is not None:
                raise DataError(
                    f"data folder {self.name} can't be read as train and test files in the hub's layout: {reason}"
                ) from error
            raise DataError(
                f"data set {self.name!r} can't be had from the Hugging Face hub: {reason}; check the name and the "
                "connection, or give a local folder in the same layout, or digits"
            ) from error
        finally:
            if not shown:
                datasets.enable_progress_bars()


def _cache_folder() -> Path:
    own = os.environ.get("APICAL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apical"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-40:]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps([_FORMAT, value]).encode()).hexdigest()[:16]


def _read(home: Path, name: str, in_memory: bool | None) -> ImageData | None:
    """What was decoded before, or None if nothing (whole) is there."""
    manifest = home / "manifest.json"
    if not manifest.exists():
        return None
    try:
        described = json.loads(manifest.read_text())
        for file, digest in described["files"].items():
            with (home / file).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    raise ValueError(f"{file} does not match its checksum")
        size = sum((home / file).stat().st_size for file in described["files"])
        keep = _fits(size) if in_memory is None else in_memory
        splits = {}
        for split in ("train", "test"):
            # Copy-on-write: PyTorch takes no read-only arrays.
            images = np.load(home / f"{split}-images.npy", mmap_mode=None if keep else "c")
            splits[split] = Split(torch.from_numpy(images), torch.from_numpy(np.load(home / f"{split}-labels.npy")))
        return ImageData(name, splits["train"], splits["test"], tuple(described["class_names"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"decoded images in {home} are damaged ({error}); decoding {name} again", stacklevel=3)
        return None


def _fits(size: int) -> bool:
    try:
        return size < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
    except (AttributeError, ValueError, OSError):
        return size < 2**31


def _decode(source: _Source, home: Path) -> None:
    """Decode into a folder beside `home`, and move it there when it is whole."""
    splits = source.splits()
    chosen = {
        "train": _choose_split(source.name, splits, ("train",)),
        "test": _choose_split(source.name, splits, ("test", "validation", "valid", "val")),
    }
    class_names = _class_names(source.name, chosen["train"])
    home.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}."))
    try:
        shape: tuple[int, ...] | None = None
        for split, dataset in chosen.items():
            if len(dataset) == 0:
                raise DataError(f"the {split} split of {source.name} is empty")
            labels = _labels(source.name, split, dataset, len(class_names))
            np.save(work / f"{split}-labels.npy", labels)
            shape = _write_images(source.name, split, dataset, work / f"{split}-images.npy", shape)
        files = {}
        for path in sorted(work.iterdir()):
            with path.open("rb") as stream:
                files[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        write_json(work / "manifest.json", {"source": source.name, "class_names": class_names, "files": files})
        _move(work, home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move(work: Path, home: Path) -> None:
    """Put a whole folder in its place; one that is there already was damaged, or another process was quicker."""
    for _ in range(10):
        try:
            os.rename(work, home)  # noqa: PTH104
            return
        except OSError:
            old = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}.old."))
            try:
                os.rename(home, old)  # noqa: PTH104
            except FileNotFoundError:
                pass
            finally:
                shutil.rmtree(old, ignore_errors=True)
    raise DataError(f"can't put decoded images into {home}")


def _choose_split(name: str, splits: dict[str, Any], wanted: tuple[str, ...]) -> Any:
    for split in wanted:
        if split in splits:
            return splits[split]
    raise DataError(f"data set {name} has no {' or '.join(wanted)} split; it has {', '.join(splits) or 'none'}")


def _column(name: str, dataset: Any, kind: str) -> str:
    import datasets

    features = dataset.features
    if kind == "image":
        preferred, fitting = _IMAGE_COLUMNS, [key for key, f in features.items() if isinstance(f, datasets.Image)]
    else:
        preferred = _LABEL_COLUMNS
        whole = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
        fitting = [
            key for key, f in features.items() if isinstance(f, datasets.ClassLabel) or getattr(f, "dtype", "") in whole
        ]
    for key in (*preferred, *fitting):
        if key in fitting:
            return key
    raise DataError(
        f"data set {name} has no {kind} column; its columns are {', '.join(f'{k}: {f}' for k, f in features.items())}"
    )


def _class_names(name: str, dataset: Any) -> list[str]:
    column = _column(name, dataset, "label")
    names = getattr(dataset.features[column], "names", None)
    if names is not None:
        return list(names)
    values = [value for value in dataset[column] if value is not None]
    if not values or min(values) < 0:
        raise DataError(
            f"labels of {name} have to be whole numbers from 0; the smallest is {min(values, default=None)}"
        )
    return [str(value) for value in range(max(values) + 1)]


def _labels(name: str, split: str, dataset: Any, classes: int) -> np.ndarray:
    values = list(dataset[_column(name, dataset, "label")])
    for row, value in enumerate(values):
        if value is None or not 0 <= value < classes:
            raise DataError(
                f"label {value} of sample {row} in the {split} split of {name} is not one of 0 ... {classes - 1}"
            )
    return np.asarray(values, dtype=np.int64)


def _write_images(name: str, split: str, dataset: Any, path: Path, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Decode a split into an array file; returns (C, H, W), which every image has to have."""
    from rich.console import Console
    from rich.progress import track

    column = _column(name, dataset, "image")
    encoded = dataset.select_columns([column]).with_format("arrow")
    array: np.ndarray | None = None
    console = Console(stderr=True)
    rows = range(0, len(dataset), 1000)
    for start in track(
        rows, f"decoding {split} images", console=console, transient=True, disable=not console.is_terminal
    ):
        for offset, cell in enumerate(encoded[start : start + 1000].column(column).to_pylist()):
            row = start + offset
            pixels = _pixels(cell, f"image {row} in the {split} split of {name}")
            if shape is None:
                shape = pixels.shape
            if pixels.shape != shape and pixels.shape[0] == 1 and shape[0] == 3 and pixels.shape[1:] == shape[1:]:
                pixels = pixels.repeat(3, axis=0)
            if pixels.shape != shape:
                raise DataError(
                    f"image {row} in the {split} split of {name} has shape {pixels.shape}, the first one has {shape}; "
                    "bring all images to one size and to grey or colour alike"
                )
            if array is None:
                array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(dataset), *shape))
            array[row] = pixels
    assert array is not None
    assert shape is not None
    array.flush()
    return shape


def _pixels(cell: Any, which: str) -> np.ndarray:
    """Decoded image [C, H, W]: one channel for grey images, else three."""
    from PIL import Image

    try:
        content = cell["bytes"] if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            grey = image.mode in ("1", "L", "LA", "I", "I;16", "F")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:
        raise DataError(f"{which} can't be decoded: {error}; repair or remove it") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
