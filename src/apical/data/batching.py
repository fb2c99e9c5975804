"""Batches of samples: their type, the order that they come in, and the parts of them that processes share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Batch = tuple[Float[Tensor, "*n c h w"], Int[Tensor, "*n"]]
"""Images, float32 from 0 to 1, and their labels."""
Share = tuple[int | range, int]
"""(number, of how many) nearly equal parts of a batch; a range of numbers: those neighbouring parts together."""


class DataError(ValueError):
    """An error of data that can't be used; its message says which data, why, and the way out.

    >>> from apical.data import load
    >>> load("./nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    apical.data.batching.DataError: data folder './nowhere' does not exist ...
    """


def rows_of(part: Share, n: int) -> slice:
    """The rows of a batch of `n` that belong to a part of it, or to several neighbouring ones.

    >>> [rows_of((number, 3), 7) for number in range(3)]  # as torch.tensor_split and numpy.array_split have it
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    >>> rows_of((range(1, 3), 3), 7)
    slice(3, 7, None)
    """
    numbers, count = part
    first, last = (numbers.start, numbers.stop) if isinstance(numbers, range) else (numbers, numbers + 1)
    least, more = divmod(n, count)
    return slice(first * least + min(first, more), last * least + min(last, more))


def batches(
    n: int, size: int, *, generator: torch.Generator, drop_last: bool = False
) -> Iterator[Int[Tensor, " size"]]:
    """One epoch of indices: every one from 0 to n - 1 once, shuffled, `size` at a time.

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

    >>> [index.tolist() for index in batches(5, 2, generator=torch.Generator().manual_seed(0))]
    [[4, 0], [1, 3], [2]]
    """
    if n < 0:
        raise DataError(f"n has to be a number of samples, 0 or more, got {n}")
    if size < 1:
        raise DataError(f"size has to be 1 or more, got {size}")
    order = torch.randperm(n, generator=generator, device=generator.device)
    end = n - n % size if drop_last else n
    return (order[start : min(start + size, end)] for start in range(0, end, size))


def as_batch(images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"], device: torch.device | str) -> Batch:
    """Images of bytes, and their labels, as a batch on a device, where they travel as bytes."""
    pixels = images.to(device, non_blocking=True).to(torch.float32)
    # A divisor on the device, because CUDA turns one from the CPU into a factor 1/255, which rounds differently.
    return pixels.div_(torch.full((), 255.0, device=pixels.device)), labels.to(device, non_blocking=True)
