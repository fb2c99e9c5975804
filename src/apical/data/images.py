"""Images with their labels, and the batches that training and testing take of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from typing_extensions import override

from apical.data.batching import Batch, DataError, Share, as_batch, batches, rows_of


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: images with their labels, all for training or all for testing.

    Whoever trains asks for batches and not for rows, so that data may lie in memory, in a mapped file, or arrive as a stream.

    Args:
        images: uint8 [N, C, H, W]; they may lie in a file that is mapped into memory.
        labels: int64 [N], classes from 0.

    Raises:
        DataError: if the tensors aren't of these kinds and of one length.

    >>> split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1]))
    >>> [len(y) for x, y in split.batches(2, seed=0, epoch=0)]
    [2, 2, 1]
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def streamed(self) -> bool:
        """Whether images are read while they are learned from, so that batches come in one order at a time."""
        return False

    @property
    def at_once(self) -> int:
        """How many samples a network is tested on at a time."""
        return 1000

    @property
    def skipped(self) -> Mapping[str, str]:
        """Name -> why it can't be decoded, of images that a stream was asked to leave out, and has."""
        return {}

    def check(self, classes: int, where: str) -> None:
        """Refuse labels outside 0 ... classes - 1.

        Raises:
            DataError: naming the first such row.
        """
        check_labels(self.labels, classes, where)

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
        """One epoch's batches in a random order, which depends on the seed and the epoch alone.

        So a run that was stopped asks for the rest of its epoch, and several networks can learn side by side, each from what
        it would see on its own.

        Args:
            size: samples per batch, over all parts together; the last batch may be smaller.
            seed: of the order; or several, each with an order of its own.
            epoch: which pass over the data, from 0.
            start: how many batches of the epoch to leave out.
            part: (number, of how many) nearly equal parts of each batch, for several processes that share it; or (range of
                numbers, of how many), for a process that has several of them.
            device: where the batches are to lie.

        Returns:
            Iterator over images, float32 [n, C, H, W] from 0 to 1, and labels, int64 [n]; for k seeds [k, n, C, H, W] and
            [k, n].

        >>> split = Split(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6))
        >>> [y.tolist() for x, y in split.batches(4, seed=1, epoch=0)]
        [[4, 1, 0, 3], [5, 2]]
        >>> [y.tolist() for x, y in split.batches(4, seed=1, epoch=0, start=1)]
        [[5, 2]]
        >>> [tuple(x.shape) for x, y in split.batches(4, seed=[1, 2], epoch=0)]
        [(2, 4, 1, 2, 2), (2, 2, 1, 2, 2)]
        """
        several = not isinstance(seed, int)
        orders = [self.order(size, one, epoch) for one in (seed if several else [seed])]
        for indices in islice(zip(*orders, strict=True), start, None):
            # One look-up for all orders: a row of each beside those of the others, as networks side by side take them.
            index = torch.stack(indices, 1) if several else indices[0]
            index = index[rows_of(part, len(index))]
            images, labels = self.batch(index.flatten(), device=device)
            if several:
                images, labels = (x.unflatten(0, index.shape).transpose(0, 1) for x in (images, labels))
            yield images, labels

    def order(self, size: int, seed: int, epoch: int) -> Iterator[Int[Tensor, " size"]]:
        """The indices of an epoch's batches: every sample once, in an order that the seed and the epoch alone decide."""
        return batches(len(self), size, generator=torch.Generator().manual_seed((seed + 1) * 1_000_003 + epoch))

    def in_order(self, size: int, *, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """All samples in their own order, `size` at a time, for testing.

        >>> split = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
        >>> [y.tolist() for x, y in split.in_order(2)]
        [[0, 1], [2, 3], [4]]
        """
        return (self.batch(index, device=device) for index in torch.arange(len(self)).split(size))

    def first(self, n: int, *, device: torch.device | str = "cpu") -> Batch:
        """The first `n` samples, or all of them where there are fewer: for a measurement that needs no more.

        >>> Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5)).first(2)[1].tolist()
        [0, 1]
        """
        return self.batch(torch.arange(min(n, len(self))), device=device)

    def part(self, index: Int[Tensor, " n"]) -> Split:
        """Those samples alone, as a split in the order of `index`. What lies in memory is not copied."""
        return Part(self, index)

    def pictures(self, n: int) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """The first `n` images as they are, in bytes, with their labels: to be looked at.

        >>> Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5)).pictures(2)[0].dtype
        torch.uint8
        """
        return self.images[:n], self.labels[:n]

    def batch(self, index: Int[Tensor, " n"], *, device: torch.device | str = "cpu") -> Batch:
        """The samples at `index`.

        Args:
            index: int32 or int64 [n], each from 0 to N - 1, in any order, repeated or not.
            device: where the batch is to lie. The images travel there as bytes.

        Returns:
            Images, float32 [n, C, H, W] from 0 to 1 (a byte's value / 255), and labels, int64 [n].

        Raises:
            IndexError: if an index isn't from 0 to N - 1.

        >>> split = Split(torch.full((3, 1, 1, 1), 51, dtype=torch.uint8), torch.arange(3))
        >>> x, y = split.batch(torch.tensor([2, 0]))
        >>> x.flatten(), y
        (tensor([0.2000, 0.2000]), tensor([2, 0]))
        """
        index = index.to(self.images.device)
        return as_batch(self.images.index_select(0, index), self.labels.index_select(0, index), device)


class View(Split):
    """A split whose samples lie in another one, `of`."""

    of: Split

    @property
    @override
    def shape(self) -> tuple[int, int, int]:
        return self.of.shape

    @property
    @override
    def streamed(self) -> bool:
        return self.of.streamed

    @property
    @override
    def at_once(self) -> int:
        return self.of.at_once

    @property
    @override
    def skipped(self) -> Mapping[str, str]:
        return self.of.skipped


class Part(View):
    """Some samples of a split, which stay where they are.

    Args:
        of: the split. index: int64 [n], which of its samples, in the part's own order.

    >>> whole = Split(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    >>> [y.tolist() for x, y in Part(whole, torch.tensor([4, 1, 2])).in_order(2)]
    [[4, 1], [2]]
    """

    def __init__(self, of: Split, index: Int[Tensor, " n"]) -> None:
        self.of, self.index = of, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """The images, uint8 [N, C, H, W]: a copy."""
        return self.of.images[self.index]

    @property
    def labels(self) -> Int[Tensor, " n"]:
        """The labels, int64 [N]."""
        return self.of.labels[self.index]

    @override
    def pictures(self, n: int) -> tuple[UInt8[Tensor, "n c h w"], Int[Tensor, " n"]]:
        return self.of.images[self.index[:n]], self.of.labels[self.index[:n]]

    @override
    def batch(self, index: Int[Tensor, " n"], *, device: torch.device | str = "cpu") -> Batch:
        return self.of.batch(self.index[index.to(self.index.device)], device=device)


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
