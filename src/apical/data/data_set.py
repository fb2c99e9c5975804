"""A data set: a split to train on, one to test on, and one to choose settings and checkpoints by.

By the last one, the test split stays unseen until everything is chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from apical.checks import number
from apical.data.batching import DataError
from apical.data.images import Split

Amount = int | float
"""How much of the training split is held out: a fraction below 1, or a number of images."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of classified images: a split to train on, one to test on, and perhaps one to choose by.

    A text is one whose images are windows of bytes, and whose labels the bytes that come next.

    Args:
        name: how it was asked for. train, test: the two splits.
        classes: how many there are; labels count from 0. class_names: one for each.
        validation: what settings and checkpoints are chosen by, so that the test split stays unseen until then.
        called: role -> what the split is: its name in the set, or how it was held out.

    Raises:
        DataError: if the splits' images differ in shape, or the names or labels don't agree with `classes`.

    >>> split = Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> data = ImageData("mine", train=split, test=split, classes=2, class_names=("cat", "dog"))
    >>> data.shape, data.features
    ((3, 2, 2), 12)
    """

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    validation: Split | None = None
    called: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, split in self.splits.items():
            if split.shape != self.train.shape:
                raise DataError(
                    f"{self.name}: training images are {self.train.shape}, {role} images {split.shape}; they have to have one "
                    "shape [C, H, W]"
                )
        if len(self.class_names) != self.classes:
            raise DataError(f"{self.name}: {self.classes} classes can't have {len(self.class_names)} names")
        for role, split in self.splits.items():
            if len(split) == 0 and role == "validation":
                raise DataError(
                    f"{self.name}: the validation split is empty ({self.calls(role)}); give one with images in it, or None"
                )
            split.check(self.classes, f"{self.name}, split {role!r}")

    @property
    def splits(self) -> dict[str, Split]:
        """Role ("train", "test", and "validation" where there is one) -> split."""
        found = {"train": self.train, "test": self.test, "validation": self.validation}
        return {role: split for role, split in found.items() if split is not None}

    @property
    def tested(self) -> dict[str, str]:
        """Role -> what the split is, in words, of all but the training split."""
        return {role: self.calls(role) for role in self.splits if role != "train"}

    def calls(self, role: str) -> str:
        """What the split of a role is, in words.

        >>> split = Split(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
        >>> ImageData("mine", split, split, 2, ("cat", "dog"), called={"test": "val"}).calls("test")
        "split 'val'"
        """
        told = self.called.get(role, role)
        return told if " " in told else f"split {told!r}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image; (T,) of a text's window."""
        return self.train.shape

    @property
    def features(self) -> int:
        """Values per image: C H W."""
        return math.prod(self.shape)


def part(data: ImageData, images: int) -> ImageData:
    """`data` with so many training images, drawn once for all, and the first of the test images, as many at most.

    >>> from apical.data import load
    >>> some = part(load("digits"), 200)
    >>> len(some.train), len(some.test), len(part(some, 200).train)
    (200, 200, 200)
    """
    if images >= len(data.train):
        return data
    index = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:images]
    told = f"the first {images:,} images of {data.calls('test')}"
    fewer = {} if images >= len(data.test) else {"test": data.test.part(torch.arange(images))}
    called = {**data.called, **({"test": told} if fewer else {})}
    return dataclasses.replace(data, train=data.train.part(index.sort().values), called=called, **fewer)


def held_out(data: ImageData, amount: Amount, seed: int = 0) -> ImageData:
    """`data` with a validation split that was taken out of its training split, at random.

    Args:
        data: without a validation split.
        amount: a fraction of the training split, below 1, or a number of images, 1 or more.
        seed: which of them: the same for equal seeds, whatever is trained from which seed.

    Raises:
        DataError: if nothing would be held out, or nothing left to train on.

    >>> from apical.data import load
    >>> tenth = held_out(load("digits"), 0.1)
    >>> len(tenth.train), len(tenth.validation), tenth.calls("validation")
    (1298, 144, "144 of 1,442 images of split 'train', held out by seed 0")
    """
    train, named = data.train, data.calls("train")
    number("validation", amount, least=0)
    count = round(amount * len(train)) if amount < 1 else int(amount)
    if count < 1 or (amount >= 1 and count != amount):
        raise DataError(
            f"validation={amount} can't be held out of the {len(train):,} images of {data.name}, {named}: the validation split "
            f"would {'be empty' if count < 1 else 'hold half an image'}; give a larger fraction below 1, or a whole number of "
            "images"
        )
    if count >= len(train):
        raise DataError(
            f"validation={amount} leaves nothing to train on: {data.name}, {named}, has {len(train):,} images; hold out fewer"
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    kept, held = (train.part(part.sort().values) for part in (order[count:], order[:count]))
    told = f"{count:,} of {len(train):,} images of {named}, held out by seed {seed}"
    return dataclasses.replace(data, train=kept, validation=held, called={**data.called, "validation": told})
