"""Text in windows of so many bytes, each with the bytes that come next."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from typing_extensions import override

from apical.data.batching import Batch, DataError
from apical.data.data_set import ImageData
from apical.data.images import Split
from apical.data.text.files import SHARE, is_text, parts_of

BYTES = 256
"""Values of a byte: the classes of a text."""
TESTED = 2**17
"""Bytes of a held-out part that are tested on, in windows evenly spread over it: outputs for them are held at once."""
AT_ONCE = 2**13
"""Bytes that a network is tested on at a time."""
WINDOW = 128
"""Bytes of a window, where nothing else is asked for."""


class Windows(Split):
    """A text in windows that follow each other without overlap; the targets of each are its bytes moved by one.

    A sample is a window: it is what is shuffled, and what processes share out. Bytes at the end that fill no window are left out,
    so that every window has the same weight.

    Args:
        text: uint8 [B]. window: T, bytes of one. most: how many windows there may be; of more, as many are taken, evenly spread.

    Raises:
        DataError: if there isn't a single window.

    >>> x, y = Windows(torch.arange(9, dtype=torch.uint8), window=3).batch(torch.tensor([1, 0]))
    >>> x.tolist(), y.tolist()
    ([[3, 4, 5], [0, 1, 2]], [[4, 5, 6], [1, 2, 3]])
    """

    def __init__(self, text: UInt8[Tensor, " b"], window: int, most: int | None = None) -> None:
        self.text, self.window = text, window
        # A window has a byte after it, its last target.
        count = (len(text) - 1) // window
        if count < 1:
            raise DataError(f"{len(text):,} bytes are too few for a window of {window} and the byte after it (window)")
        taken = count if most is None else min(count, most)
        self.starts = torch.arange(taken) * count // taken * window

    def __len__(self) -> int:
        return len(self.starts)

    @property
    @override
    def shape(self) -> Any:
        """(T,), where images have (C, H, W)."""
        return (self.window,)

    @property
    @override
    def at_once(self) -> int:
        return max(1, AT_ONCE // self.window)

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """None: a text has no images.

        Raises:
            DataError: always.
        """
        raise DataError("a text has no images, and this asks for them; give images: data='digits'")

    @property
    def labels(self) -> Int[Tensor, "n t"]:
        """The targets, int64 [N, T]."""
        return self.batch(torch.arange(len(self)))[1]

    @override
    def check(self, classes: int, where: str) -> None:
        """Nothing: all bytes are classes."""

    @override
    def batch(self, index: Int[Tensor, " n"], *, device: torch.device | str = "cpu") -> Batch:
        """The windows at `index`: bytes and those that come next, int64 [n, T] each."""
        places = self.starts[index.cpu()][:, None] + torch.arange(self.window + 1)
        found = self.text[places].to(device, non_blocking=True).long()
        return found[:, :-1], found[:, 1:]


def text(name: str = "text", *, window: int = WINDOW, validation: float | None = None, seed: int = 0) -> ImageData:
    """A text as a data set: byte by byte, in windows, with 256 classes.

    Args:
        name: "text" for the sources of Python's standard library, or "text:PATH" of a file or a folder. Of a folder's files those
            are read that hold no byte 0 and are not hidden.
        window: T, bytes of a window. validation: the share that is held out to choose by, and not tested on; None: 5 %.
        seed: which files these are.

    Returns:
        Splits whose batches are int64 [n, T], and [n, T] the bytes that come next.

    Raises:
        DataError: if there is no such text, or too little of it.

    >>> data = text(window=64)
    >>> data.shape, data.classes, data.train.first(2)[0].shape
    ((64,), 256, torch.Size([2, 64]))
    """
    if not is_text(name):
        raise DataError(f"data {name!r} is no text; give 'text', or 'text:{name}'")
    if window < 1:
        raise DataError(f"window must be at least 1, got {window}")
    if validation is not None and not 0 < validation < 1:
        raise DataError(
            f"validation={validation}: of a text a share is held out, in whole files; give a fraction such as {SHARE}"
        )
    found = parts_of(name, SHARE if validation is None else validation, seed)
    splits = {}
    for role, content in found.content.items():
        if len(content) <= window:
            raise DataError(
                f"data {name!r}: its {role} part, {found.called[role]}, has {len(content):,} bytes, too few for a window of "
                f"{window} and the byte after it; give more text, or a smaller window (--window)"
            )
        whole = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        splits[role] = Windows(whole, window, None if role == "train" else max(1, TESTED // window))
    names = tuple(ascii(chr(one))[1:-1] for one in range(BYTES))
    return ImageData(name, classes=BYTES, class_names=names, called=found.called, **splits)
