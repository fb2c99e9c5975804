"""A data set by its name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apical.data.batching import DataError
from apical.data.cache import Cache, DamagedError
from apical.data.columns import TEST_SPLITS, Choice
from apical.data.data_set import Amount, ImageData, held_out
from apical.data.decode import decode
from apical.data.images import Split
from apical.data.source import Folder, Hub, UnreachableError, offline_by_choice, resolve
from apical.data.text.files import is_text
from apical.data.text.windows import WINDOW, text
from apical.files import cache_folder

_UNKNOWN = "unknown"  # fingerprint of what `datasets` has kept of a data set on a hub that can't be asked


def load(
    name: str = "digits",
    *,
    cache: Path | None = None,
    test_split: str | None = None,
    validation: str | Amount | None = None,
    validation_seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    in_memory: bool | None = None,
    window: int = WINDOW,
) -> ImageData:
    """The data set of a name, decoded at the first time and kept for later ones.

    Grey images have one channel, all others three (RGB), as have grey images among coloured ones; an alpha channel is
    dropped. What was kept is checked byte by byte, and decoded anew when it is damaged or its source has changed: a
    folder's files by name, size and time of modification, a data set on the hub by its revision.

    Args:
        name: "digits" (1797 images of 8 x 8, bundled with scikit-learn; nothing is read or kept elsewhere), a data set
            on the Hugging Face hub such as "ylecun/mnist" or "uoft-cs/cifar10", or a local folder in the hub's layout; "text",
            the sources of Python's standard library, or "text:PATH" of a file or a folder of texts, read byte by byte.
        cache: where decoded images are kept. None: $APICAL_CACHE, else `apical` in $XDG_CACHE_HOME or ~/.cache.
        test_split: the split to test on. None: "test", else "validation", "valid" or "val". The other is "train".
        validation: the split to choose settings and checkpoints by: a split's name, or how much of the training split to hold
            out, as a fraction (0.1) or a number of images (5000). None: there is none.
        validation_seed: which images are held out.
        image_column: None: found by its type and by a name such as "image" or "img".
        label_column: None: found by its type and by a name such as "label" or "fine_label".
        in_memory: read the images into memory; False: map their files, and read what a batch needs. None: into memory
            if they take up to a quarter of it.
        window: of a text, the bytes of a sample.

    Returns:
        Two or three splits with uint8 images [N, C, H, W] and int64 labels [N]; of a text always three (see
        `text.windows.text`).

    Raises:
        DataError: if the data is missing, empty, damaged or unreachable, has images of several sizes, or is no
            image-classification data; or if the cache folder can't be written.

    >>> digits = load("digits")
    >>> len(digits.train), len(digits.test), digits.shape, digits.classes
    (1442, 355, (1, 8, 8), 10)
    """
    own = validation if isinstance(validation, str) else None
    choice, name = Choice(test_split, image_column, label_column, own), os.fspath(name)
    if is_text(name):
        if given := [key for key, value in choice.identity.items() if value is not None]:
            raise DataError(
                f"data {name!r} is a text, of which whole files are held out; leave out {', '.join(given)}, or give a fraction: "
                "validation=0.05"
            )
        share = None if isinstance(validation, str) else validation
        return text(name, window=window, validation=share, seed=validation_seed)
    data = _load(name, cache, choice, in_memory)
    if validation is None or isinstance(validation, str):
        return data
    return held_out(data, validation, validation_seed)


def _load(name: str, cache: Path | None, choice: Choice, in_memory: bool | None) -> ImageData:
    if name == "digits":
        if choice.validation_split:
            raise DataError(
                f"digits have no split {choice.validation_split!r} to choose by (validation); hold a part of the training split "
                "out: validation=0.1 (a folder of that name is './digits')"
            )
        if given := [key for key, value in choice.identity.items() if value is not None]:
            raise DataError(
                f"digits come in one form; leave out {', '.join(given)} (a folder of that name is './digits')"
            )
        return digits()
    source = resolve(name)
    root = cache_folder(cache)
    if isinstance(source, Folder) and root.is_relative_to(source.path):
        raise DataError(
            f"cache folder {root} lies in the data folder {name!r}, and would change it; name another by cache="
        )
    kept = Cache(root, name, [source.identity, choice.identity])
    try:
        fingerprint = source.fingerprint()
    except UnreachableError as error:
        return _without_hub(source, kept, choice, in_memory, error)
    entry = kept.entry(fingerprint or _UNKNOWN)
    try:
        found = kept.read(entry, name, in_memory)
    except DamagedError:
        found = None  # It is looked at again, and reported, when no other process is writing it.
    found = found or _decode(source, fingerprint, kept, entry, choice, in_memory)
    if unused := kept.unused(entry):
        warnings.warn(
            f"data {name!r}: {', '.join(unused)} not used; it trains on split 'train' and tests on the first of 'test', "
            "'validation', 'valid', 'val' (to test on another: apical.data.load(..., test_split=), or a folder with these two; "
            "to choose settings by one: validation=)",
            stacklevel=3,
        )
    return found


def _without_hub(
    source: Folder | Hub, kept: Cache, choice: Choice, in_memory: bool | None, error: UnreachableError
) -> ImageData:
    """What was decoded last, of whatever revision; else, if the user has said that there is no hub, what `datasets` has."""
    latest = kept.newest()
    try:
        found = kept.read(latest, source.name, in_memory) if latest else None
    except DamagedError as damage:
        raise DataError(f"decoded images in {latest} are damaged ({damage}), and {error}") from error
    if found is None:
        if not offline_by_choice():
            raise error  # `datasets` would look for its own copy only after half a minute of attempts to connect.
        return _decode(source, None, kept, kept.entry(_UNKNOWN), choice, in_memory)
    if not offline_by_choice():
        warnings.warn(
            f"the Hugging Face hub can't be reached: {source.name} may have changed since it was decoded into {latest} "
            "(to work without the hub, and this warning, set HF_HUB_OFFLINE=1)",
            stacklevel=4,
        )
    return found


def _decode(
    source: Folder | Hub, fingerprint: str | None, kept: Cache, entry: Path, choice: Choice, in_memory: bool | None
) -> ImageData:
    with kept.lock():
        try:
            found = kept.read(entry, source.name, in_memory)
        except DamagedError as damage:
            found = None
            warnings.warn(
                f"decoded images in {entry} are damaged ({damage}); decoding {source.name} again", stacklevel=4
            )
        if found is not None:  # Another process wrote it while this one waited.
            return found

        def made(new: Path, scratch: Path) -> dict[str, Any]:
            splits = source.open(scratch, fingerprint)
            content = decode(splits, new, source.name, choice)
            return {**content, "unused": _unused(source, splits, scratch, choice)}

        kept.write(entry, made)
        try:
            found = kept.read(entry, source.name, in_memory)
        except DamagedError as damage:
            raise DataError(
                f"decoded images in {entry} differ from what was just written ({damage}); is the disk failing? "
                "Name another cache folder by cache= or $APICAL_CACHE"
            ) from damage
        if found is None:
            raise DataError(f"decoded images in {entry} were removed by another program as soon as they were written")
        return found


def _unused(source: Folder | Hub, splits: Collection[str], scratch: Path, choice: Choice) -> list[str]:
    """What of a data set is neither trained nor tested on, though nobody has said so."""
    usual = next((split for split in TEST_SPLITS if split in splits), "")
    wanted, unread = {"train", usual, choice.validation_split}, []
    with suppress(Exception):  # It is for a warning only.
        unread = source.unread(scratch)
    others = [] if choice.test_split else [split for split in splits if split not in wanted]
    return [*(f"split {split!r}" for split in others), *(f"file {file!r} (in no split)" for file in unread)]


def digits() -> ImageData:
    """1797 images [1, 8, 8] of ten digits; of each digit's images every fifth is for testing (1442 and 355).

    The split follows the bundled order, so that it depends on no random generator's version. Values 0 ... 16 become
    0 ... 255, rounded half up.
    """
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    images = torch.from_numpy(((bundled.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[(labels == digit).nonzero()[4::5, 0]] = True
    train_split, test_split = (Split(images[part], labels[part]) for part in (~test, test))
    return ImageData("digits", train_split, test_split, 10, tuple(str(digit) for digit in range(10)))
