"""What a run may ask of its data, as options: which splits, and how images come to be batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from apical.checks import check_seed
from apical.data.augment import ResizedCrop, augmentations
from apical.data.batching import DataError
from apical.data.columns import Choice
from apical.data.data_set import ImageData, held_out, part
from apical.data.loading import load
from apical.data.prepared import Prepared, normal_of, prepared
from apical.data.streaming.opening import stream
from apical.data.streaming.stream import Reading
from apical.data.text.files import is_text
from apical.data.text.windows import WINDOW


def later(default: Any) -> Any:
    """A field that is written to config.json only where it differs from its default: runs from before it lack it."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of training that say which splits a data set has, and how its images come to be batches.

    >>> from apical.data import load
    >>> DataOptions(validation=0.1).applied(load("digits")).calls("validation")
    "144 of 1,442 images of split 'train', held out by seed 0"
    """

    test_split: str | None = later(None)
    """The split to test on. None: "test", else "validation", "valid" or "val"."""
    validation: int | float | str | None = later(None)
    """What settings and checkpoints are chosen by: a split's name, or how much of the training split to hold out: 0.1, 5000."""
    validation_seed: int = later(0)
    """Which training images are held out."""
    images: int | None = later(None)
    """Train on so many of the training images, drawn once for all, and test on as many at most. None: all."""

    augment: str = later("")
    """What is done to training images, joined by +: flip, alternating-flip, crop:padding=4, reflected-crop, cutout, ..."""
    normalize: str | None = later(None)
    """Mean and deviation of each channel, which images from 0 to 1 lose: own, imagenet, or 0.5,0.5,0.5/0.2,0.2,0.2."""

    stream: bool = later(False)
    """Read images while training, instead of all beforehand: class folders (ImageNet), tar shards (WebDataset) or parquet."""
    image_size: int | None = later(None)
    """With --stream: pixels of each side that images of any sizes come to have. Usual for ImageNet: 224."""
    shuffle_buffer: int = later(10_000)
    """With --stream: images that are mixed at a time, where shards are read from end to end; files are mixed altogether."""
    workers: int | None = later(None)
    """With --stream: threads of each process that decode images. None: one for each of its processors."""
    skip_corrupt: bool = later(False)
    """With --stream: leave images out that can't be decoded, with a warning that names them, instead of ending."""

    window: int = later(WINDOW)
    """With --data text: bytes that a network sees at a time, each of which it predicts from those before it."""

    def problems(self) -> list[str]:
        """What is wrong with the values, in words."""
        found = []
        if not isinstance(self.validation, str | None) and not self.validation > 0:
            found.append(f"validation must be a positive number or a split's name, got {self.validation}")
        for name in ("images", "image_size", "shuffle_buffer", "workers", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name} must be at least 1, got {value}")
        if not self.stream and (given := self._given("image_size", "shuffle_buffer", "workers", "skip_corrupt")):
            found.append(f"{', '.join(given)} is for streamed data; give stream=True (--stream), or leave it out")
        if self.stream and self.images is not None:
            found.append(
                "images can't be had with stream: what arrives one by one is not chosen from; leave one of them out"
            )
        if self.stream and self.normalize == "own":
            found.append("normalize='own' would read a whole stream first; give 'imagenet' or numbers")
        checks: list[Callable[[], Any]] = [
            lambda: check_seed("validation_seed", self.validation_seed),
            lambda: augmentations(self.augment),
            lambda: self.normalize in (None, "own") or normal_of(str(self.normalize)),
        ]
        for check in checks:
            try:
                check()
            except ValueError as error:
                found.append(str(error))
        return found

    def applied(self, data: ImageData | str) -> ImageData:
        """A data set, given or by its name, with the splits and the batches that these options ask for.

        What has a validation split already keeps it, and what these options were applied to stays as it is.

        Raises:
            DataError: if the data can't be loaded, or has no such split.
        """
        name = data if isinstance(data, str) else data.name
        if is_text(name) and (given := self._given("augment", "normalize", "stream", "images")):
            raise DataError(f"{', '.join(given)} is for images, and data {name!r} is a text; leave it out")
        if not is_text(name) and self._given("window"):
            raise DataError(f"window={self.window} is for text (data='text'), and the data are {name!r}; leave it out")
        augment = augmentations(self.augment)
        if isinstance(data, str) and self.stream:
            # A stream cuts parts out as it decodes, from the whole image.
            cut = [one for one in augment if isinstance(one, ResizedCrop)]
            augment = tuple(one for one in augment if not isinstance(one, ResizedCrop))
            data = self._stream(data, cut[0] if cut else None)
        elif isinstance(data, str):
            data = load(
                data,
                test_split=self.test_split,
                validation=self.validation,
                validation_seed=self.validation_seed,
                window=self.window,
            )
        if isinstance(data.train, Prepared):  # by these options, once already
            return data
        data = self._divided(data)
        if self.images is not None:
            data = part(data, self.images)
        return prepared(data, augment, self.normalize) if self.augment or self.normalize else data

    def _given(self, *names: str) -> list[str]:
        """Those options of these names that don't have their defaults."""
        return [one.name for one in fields(self) if one.name in names and getattr(self, one.name) != one.default]

    def _stream(self, name: str, part: ResizedCrop | None) -> ImageData:
        own = self.validation if isinstance(self.validation, str) else None
        return stream(
            name,
            image_size=self.image_size,
            part=part,
            reading=Reading(self.shuffle_buffer, self.workers or processors(), self.skip_corrupt),
            choice=Choice(test_split=self.test_split, validation_split=own),
        )

    def _divided(self, data: ImageData) -> ImageData:
        if self.validation is None or data.validation is not None:
            return data
        if isinstance(self.validation, str):
            raise DataError(
                f"validation={self.validation!r} names a split, and the data that was given, {data.name}, has none to choose by; "
                "load it with apical.data.load(..., validation=), or hold a part of the training split out: validation=0.1"
            )
        return held_out(data, self.validation, self.validation_seed)


def processors() -> int:
    """How many processors each process has, of those that the processes on this machine share."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
