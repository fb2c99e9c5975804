"""From encoded bytes to pixels of one size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apical.data.augment import ResizedCrop

if TYPE_CHECKING:
    from PIL import Image

MARGIN = 256 / 224
"""The shorter side of a test image over the square that is cut out of its middle, as everybody tests on ImageNet."""
_DEEP = ("I", "F")


class UndecodableError(Exception):
    """An error of bytes that are no image."""


@dataclass(frozen=True)
class Resize:
    """How images of any size come to have one.

    Args:
        size: pixels of each side; None: all images have one size already.
        shape: (height, width) that images have in that case.
        part: what is cut out of images that are trained on; None: the middle, as of those that are tested on.
    """

    size: int | None
    shape: tuple[int, int]
    part: ResizedCrop | None = None

    def __call__(self, image: Image.Image, u: np.ndarray | None) -> Image.Image | None:
        """The image in its new size; None if it has another, and there is no rule. u: random numbers, to train on it."""
        from PIL.Image import Resampling

        width, height = image.size
        if self.size is None and (height, width) != self.shape:
            return None
        target = self.shape[::-1] if self.size is None else (self.size, self.size)
        if self.part is not None and u is not None:
            top, left, h, w = (int(one[0]) for one in self.part.boxes(u[None], height, width))
            box = (left, top, left + w, top + h)
        elif self.size is None:
            return image
        else:
            side = min(width, height) / MARGIN
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        return image.resize((target[0], target[1]), Resampling.BILINEAR, box=box)


def opened(encoded: bytes) -> Image.Image:
    """The image in 8 bits of red, green and blue; an alpha channel is dropped.

    Raises:
        UndecodableError: if the bytes are no whole image, or one of more than 8 bits.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders fail in many ways.
        raise UndecodableError(f"{type(error).__name__}: {error}") from error
    if image.mode.startswith(_DEEP):
        raise UndecodableError(f"grey image of more than 8 bits (Pillow mode {image.mode!r}); bring it to 8 bits first")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
