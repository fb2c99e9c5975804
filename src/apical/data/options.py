"""What a run may ask of its data, as options: which splits, and how images come to be batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from apical.checks import check_seed
from apical.data.augment import augmentations
from apical.data.data_set import ImageData, held_out
from apical.data.images import DataError
from apical.data.loading import load
from apical.data.prepared import Prepared, normal_of, prepared


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

    augment: str = later("")
    """What is done to training images, joined by +: flip, crop:padding=4, cutout:size=16, resized-crop:scale=0.08."""
    normalize: str | None = later(None)
    """Mean and deviation of each channel, which images from 0 to 1 lose: own, imagenet, or 0.5,0.5,0.5/0.2,0.2,0.2."""

    def problems(self) -> list[str]:
        """What is wrong with the values, in words."""
        found = []
        if not isinstance(self.validation, str | None) and not self.validation > 0:
            found.append(f"validation must be a positive number or a split's name, got {self.validation}")
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
        if isinstance(data, str):
            data = load(
                data, test_split=self.test_split, validation=self.validation, validation_seed=self.validation_seed
            )
        if isinstance(data.train, Prepared):  # by these options, once already
            return data
        return prepared(self._divided(data), augmentations(self.augment), self.normalize)

    def _divided(self, data: ImageData) -> ImageData:
        if self.validation is None or data.validation is not None:
            return data
        if isinstance(self.validation, str):
            raise DataError(
                f"validation={self.validation!r} names a split, and the data that was given, {data.name}, has none to choose by; "
                "load it with apical.data.load(..., validation=), or hold a part of the training split out: validation=0.1"
            )
        return held_out(data, self.validation, self.validation_seed)
