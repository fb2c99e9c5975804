"""Splits whose batches are augmented while they are trained on, and normalized whenever they are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from typing_extensions import override

from apical.data.augment import Augmentation, Cutout, drawn
from apical.data.batching import Batch, DataError, Share, rows_of
from apical.data.data_set import ImageData
from apical.data.images import Split, View

IMAGENET = "0.485,0.456,0.406/0.229,0.224,0.225"
"""Mean and deviation of ImageNet's colours, as everybody gives them."""

Normal = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel."""


class Prepared(View):
    """A split whose training batches are augmented, and all of whose batches are normalized.

    Args:
        of: the split. augment: what is done to batches for training, in this order, except that cutout is done at last.
        normal: mean and deviation of each channel, for images from 0 to 1; None: they stay as they are.

    >>> from apical.data.augment import Flip
    >>> split = Split(torch.full((3, 1, 1, 1), 255, dtype=torch.uint8), torch.arange(3))
    >>> x, y = Prepared(split, (Flip(),), ((0.5,), (0.25,))).batch(torch.tensor([1]))
    >>> x.flatten()
    tensor([2.])
    """

    def __init__(self, of: Split, augment: Sequence[Augmentation], normal: Normal | None) -> None:
        self.of, self.augment, self.normal = of, tuple(augment), normal
        if of.streamed and any(one.kept for one in augment):
            raise DataError(
                "augment: alternating-flip needs images that can be told apart, and these are streamed; take flip"
            )
        if normal is not None:
            for what, values in zip(("means", "deviations"), normal, strict=True):
                if len(values) not in (1, self.shape[0]):
                    raise DataError(f"normalize: {len(values)} {what} for images of {self.shape[0]} channels: {values}")
            self._normal = [torch.tensor(values)[:, None, None] for values in normal]

    def __len__(self) -> int:
        return len(self.of)

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """The images as they are, uint8 [N, C, H, W]."""
        return self.of.images

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The labels, int64 [N]."""
        return self.of.labels

    @override
    def check(self, classes: int, where: str) -> None:
        self.of.check(classes, where)

    @override
    def part(self, index: Int[Tensor, " n"]) -> Split:
        return Prepared(self.of.part(index), self.augment, self.normal)

    @override
    def pictures(self, n: int) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        return self.of.pictures(n)

    @override
    def batches(
        self,
        size: int,
        seed: int | Sequence[int],
        epoch: int,
        start: int = 0,
        *,
        part: Share = (0, 1),
        device: torch.device | str = "cpu",
    ) -> Iterator[Batch]:
        found = self.of.batches(size, seed, epoch, start, part=part, device=device)
        seeds = [seed] if isinstance(seed, int) else seed
        kept = [self._kept(size, one, epoch) for one in seeds]
        for number, (x, y) in enumerate(found, start):
            rows = min(size, len(self) - number * size)
            # Of each seed: the numbers for the whole batch, of which every process takes those of its own part.
            draws = [self._draws(own, rows, one, epoch, number, part, x) for own, one in zip(kept, seeds, strict=True)]
            x = self._prepared(x, draws[0]) if isinstance(seed, int) else self._side_by_side(x, draws)
            yield x, y

    def _kept(self, size: int, seed: int, epoch: int) -> dict[int, Sequence[Float[Tensor, "n k"]]]:
        """Number of an augmentation that keeps its random numbers -> those of each batch of an epoch, by its images."""
        found: dict[int, Sequence[Tensor]] = {}
        for what, one in enumerate(self.augment):
            if one.kept:
                own = (torch.from_numpy(drawn(len(self), one.numbers, seed, 0, 0, what)) + 0.5 * (epoch % 2)) % 1
                found[what] = [own[index] for index in self.of.order(size, seed, epoch)]
        return found

    def _draws(
        self,
        kept: dict[int, Sequence[Float[Tensor, "n k"]]],
        rows: int,
        seed: int,
        epoch: int,
        number: int,
        part: Share,
        x: Tensor,
    ) -> list[Float[Tensor, "n k"]]:
        found = []
        for what, one in enumerate(self.augment):
            own = kept[what][number] if what in kept else None
            u = torch.from_numpy(drawn(rows, one.numbers, seed, epoch, number, what)) if own is None else own
            found.append(u[rows_of(part, rows)].to(x.device, non_blocking=True))
        return found

    def _side_by_side(self, x: Float[Tensor, "k n c h w"], draws: list[list[Tensor]]) -> Float[Tensor, "k n c h w"]:
        joined = [torch.cat(own) for own in zip(*draws, strict=True)]
        return self._prepared(x.flatten(0, 1), joined).unflatten(0, x.shape[:2])

    def _prepared(self, x: Float[Tensor, "n c h w"], draws: Sequence[Tensor]) -> Float[Tensor, "n c h w"]:
        # A stream may have left images out that can't be decoded.
        steps = [(one, u[: len(x)]) for one, u in zip(self.augment, draws, strict=True)]
        for one, u in steps:
            if not isinstance(one, Cutout):
                x = one(x, u)
        x = self._normalized(x)
        for one, u in steps:
            if isinstance(one, Cutout):
                x = one(x, u)
        return x

    def _normalized(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        if self.normal is None:
            return x
        mean, deviation = (one.to(x.device) for one in self._normal)
        return (x - mean) / deviation

    @override
    def in_order(self, size: int, *, device: torch.device | str = "cpu") -> Iterator[Batch]:
        return ((self._normalized(x), y) for x, y in self.of.in_order(size, device=device))

    @override
    def first(self, n: int, *, device: torch.device | str = "cpu") -> Batch:
        x, y = self.of.first(n, device=device)
        return self._normalized(x), y

    @override
    def batch(self, index: Int[Tensor, " n"], *, device: torch.device | str = "cpu") -> Batch:
        x, y = self.of.batch(index, device=device)
        return self._normalized(x), y


def prepared(data: ImageData, augment: Sequence[Augmentation] = (), normalize: str | None = None) -> ImageData:
    """`data` with its training batches augmented, and all batches normalized.

    Args:
        data: any. augment: see `augment.augmentations`.
        normalize: "own" for mean and deviation of the training split, "imagenet", or numbers: "0.5,0.5,0.5/0.2,0.2,0.2".

    Raises:
        DataError: if there are not as many numbers as channels, or a channel doesn't vary.

    >>> from apical.data import load
    >>> data = prepared(load("digits"), normalize="own")
    >>> x, _ = data.train.first(1442)
    >>> round(abs(float(x.mean())), 3), round(float(x.std()), 3)
    (0.0, 1.0)
    """
    normal = None if normalize is None else measured(data) if normalize == "own" else normal_of(normalize)
    splits = {role: Prepared(one, augment if role == "train" else (), normal) for role, one in data.splits.items()}
    return dataclasses.replace(data, **splits)


def normal_of(text: str) -> Normal:
    """Mean and deviation, as they are written.

    Raises:
        ValueError: if they can't be read, or a deviation isn't positive.

    >>> normal_of("0.5/0.25")
    ((0.5,), (0.25,))
    """
    written = IMAGENET if text == "imagenet" else text
    parts = [re.split(r"\s*,\s*", part.strip()) for part in written.split("/")]
    try:
        mean, deviation = (tuple(float(one) for one in part) for part in parts)
        if min(deviation) > 0 and max(map(abs, (*mean, *deviation))) < float("inf"):
            return mean, deviation
    except ValueError:
        pass
    raise ValueError(
        f"normalize must be 'own', 'imagenet', or means and positive deviations of the channels such as '{IMAGENET}', got "
        f"{text!r}"
    )


def measured(data: ImageData) -> Normal:
    """Mean and deviation of each channel over the training split, for images from 0 to 1."""
    sums = torch.zeros(2, data.shape[0], dtype=torch.float64)
    for x, _ in data.train.in_order(1000):
        x = x.double()
        sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    mean, square = sums / (len(data.train) * data.shape[1] * data.shape[2])
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    if float(deviation.min()) < 1e-6:
        channel = int(deviation.argmin())
        raise DataError(
            f"{data.name}: normalize='own' can't divide by the deviation of channel {channel}, which is the same in all training "
            "images; give numbers, such as normalize='0.5/0.25'"
        )
    return tuple(mean.tolist()), tuple(deviation.tolist())
