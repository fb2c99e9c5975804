"""A few small images."""

import torch

from apical.data import ImageData, Split


def images(n: int, classes: int = 3, seed: int = 0) -> ImageData:
    draw = torch.Generator().manual_seed(seed)

    def split() -> Split:
        return Split(
            torch.randint(256, (n, 1, 3, 3), generator=draw).to(torch.uint8),
            torch.randint(classes, (n,), generator=draw),
        )

    return ImageData("small", split(), split(), classes, tuple("abc"[:classes]))
