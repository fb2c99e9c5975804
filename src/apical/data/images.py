"""Images with their classes, batched by index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


class DataError(ValueError):
    """Data that can't be used; the message says which, why, and the way out."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their classes; the images may lie in a file that is mapped into memory.

    Raises:
        DataError: if the tensors aren't uint8 [N, C, H, W] and int64 [N].
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(f"images have to be uint8 [N, C, H, W], got {_describe(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise DataError(f"labels have to be int64 [N], got {_describe(self.labels)}")
        if len(self.images) != len(self.labels):
            raise DataError(f"every image needs a label, got {len(self.images)} images and {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, index: Int[Tensor, " n"], *, device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """The samples at `index`.

        Args:
            index: int32 or int64 [n], each from 0 to N - 1, in any order, repeated or not.
            device: where the batch is to lie. The images travel there as bytes.

        Returns:
            Images, float32 [n, C, H, W] from 0 to 1 (a byte's value / 255), and labels, int64 [n].

        Raises:
            IndexError: if an index isn't from 0 to N - 1.
        """
        index = index.to(self.images.device)
        images = self.images.index_select(0, index).to(device, non_blocking=True).to(torch.float32)
        labels = self.labels.index_select(0, index).to(device, non_blocking=True)
        # A divisor on the device, because CUDA turns one from the CPU into a factor 1/255, which rounds differently.
        return images.div_(torch.full((), 255.0, device=images.device)), labels


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in two splits.

    Raises:
        DataError: if the splits' images differ in shape, or the names or labels don't agree with `classes`.
    """

    name: str
    train: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {tuple(self.train.images.shape[1:])}, "
                f"test images {tuple(self.test.images.shape[1:])}; they have to have one shape [C, H, W]"
            )
        if len(self.class_names) != self.classes:
            raise DataError(f"{self.name}: {self.classes} classes can't have {len(self.class_names)} names")
        for split, labels in (("train", self.train.labels), ("test", self.test.labels)):
            check_labels(labels, self.classes, f"{self.name}, split {split!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def features(self) -> int:
        """Values per image: C H W."""
        return math.prod(self.shape)


def batches(
    n: int, size: int, *, generator: torch.Generator, drop_last: bool = False
) -> Iterator[Int[Tensor, " size"]]:
    """One epoch: every index from 0 to n - 1 once, shuffled, `size` at a time.

    The order is drawn at the call, not at the first batch, so that the generator's state says which epoch comes next.

    Args:
        n: number of samples.
        size: indices per batch; the last batch may be smaller.
        generator: what the order is drawn from.
        drop_last: leave out a last batch that is smaller than `size`.

    Returns:
        Iterator over int64 [size], on the generator's device.

    Raises:
        DataError: if `n` is negative or `size` isn't positive.
    """
    if n < 0:
        raise DataError(f"n has to be a number of samples, 0 or more, got {n}")
    if size < 1:
        raise DataError(f"size has to be 1 or more, got {size}")
    order = torch.randperm(n, generator=generator, device=generator.device)
    end = n - n % size if drop_last else n
    return (order[start : min(start + size, end)] for start in range(0, end, size))


def check_labels(labels: Int[Tensor, " n"], classes: int, where: str) -> None:
    """Refuse labels outside 0 ... classes - 1.

    Raises:
        DataError: naming the first such row.
    """
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        row = int(outside.to(torch.uint8).argmax())
        raise DataError(
            f"{where}, row {row}: label {int(labels[row])} is none of the {classes} classes 0 ... {classes - 1}; "
            "mend the labels, or name a split that has them (test_split=): on the hub, -1 often stands for hidden ones"
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
