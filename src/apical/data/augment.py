"""What is done to training images while they are learned from, a whole batch at a time, on the device that it lies on.

Flips, crops and cutout are a few gathers each. Libraries (kornia, torchvision) draw from PyTorch's global generator, which
differs from process to process; here numbers come from (seed, epoch, batch) alone, so that a run that is resumed and one of
several processes see the same images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from apical.checks import nearest, number

TRIES = 10
"""Draws of a part's size and shape, before the middle of the image is taken."""


class Augmentation(Protocol):
    """One thing that is done to a batch.

    Attributes:
        numbers: how many random numbers a sample needs.
        kept: whether a sample keeps its numbers from epoch to epoch, but for a half (mod 1) that each epoch adds.
    """

    numbers: ClassVar[int]
    kept: ClassVar[bool] = False

    def __call__(self, x: Float[Tensor, "n c h w"], u: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        """The images, changed by `u`, which is drawn evenly from 0 to 1."""
        ...


@dataclass(frozen=True)
class Flip(Augmentation):
    """Half of the images are mirrored, left to right."""

    numbers: ClassVar[int] = 1

    @override
    def __call__(self, x: Float[Tensor, "n c h w"], u: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        return torch.where(u[:, :, None, None] < 0.5, x.flip(-1), x)


@dataclass(frozen=True)
class AlternatingFlip(Flip):
    """Half of the images are mirrored, left to right; in the next epoch it is the other half, and so on in turn.

    So an image is never seen twice in one form while the other one waits, which independent flips leave to chance.
    """

    kept: ClassVar[bool] = True


@dataclass(frozen=True)
class Crop(Augmentation):
    """Images are moved by up to `padding` pixels in both directions; what comes in from outside is black.

    >>> Crop(padding=1)(torch.ones(1, 1, 2, 2), torch.tensor([[0.0, 0.5]])).tolist()
    [[[[0.0, 0.0], [1.0, 1.0]]]]
    """

    padding: int = 4
    numbers: ClassVar[int] = 2
    border: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        number("padding", self.padding, least=1, whole=True)

    @override
    def __call__(self, x: Float[Tensor, "n c h w"], u: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        # A number just below 1 may round to 1 in the product.
        corner = (u * (2 * self.padding + 1)).long().clamp(max=2 * self.padding)
        rows, columns = (corner[:, i, None] + torch.arange(x.shape[2 + i], device=x.device) for i in range(2))
        padded = F.pad(x, (self.padding,) * 4, mode=self.border)
        which = torch.arange(len(x), device=x.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class ReflectedCrop(Crop):
    """Images are moved as by `Crop`; what comes in from outside is the image itself, mirrored at its border.

    >>> ReflectedCrop(padding=1)(torch.arange(4.0).view(1, 1, 2, 2), torch.tensor([[0.0, 0.5]])).tolist()
    [[[[2.0, 3.0], [0.0, 1.0]]]]
    """

    padding: int = 2
    border: ClassVar[str] = "reflect"


@dataclass(frozen=True)
class Cutout(Augmentation):
    """A square of `size` pixels is set to nought, anywhere, so that it may reach over the border (DeVries and Taylor 2017).

    It comes last: where images are normalized, nought is the mean.

    >>> Cutout(size=1)(torch.ones(1, 1, 2, 2), torch.tensor([[0.0, 0.5]])).tolist()
    [[[[1.0, 0.0], [1.0, 1.0]]]]
    """

    size: int = 16
    numbers: ClassVar[int] = 2

    def __post_init__(self) -> None:
        number("size", self.size, least=1, whole=True)

    @override
    def __call__(self, x: Float[Tensor, "n c h w"], u: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        inside = []
        for i in range(2):
            length = x.shape[2 + i]
            first = (u[:, i, None] * length).long() - self.size // 2
            place = torch.arange(length, device=x.device)
            inside.append((place >= first) & (place < first + self.size))
        return x.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0.0)


@dataclass(frozen=True)
class ResizedCrop(Augmentation):
    """A part of each image, of random size, shape and place, is brought to the size of the whole (Szegedy and others 2015).

    Args:
        scale: least share of the area. ratio: most that width may be to height, or height to width.
    """

    scale: float = 0.08
    ratio: float = 4 / 3
    numbers: ClassVar[int] = 2 * TRIES + 2

    def __post_init__(self) -> None:
        number("scale", self.scale, above=0)
        number("ratio", self.ratio, least=1)
        if self.scale > 1:
            raise ValueError(f"scale must be at most 1, the whole image, got {self.scale}")

    def boxes(
        self, u: np.ndarray, height: int | np.ndarray, width: int | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Top, left, height and width, whole pixels [n], of the parts of images of these sizes. u: [n, numbers].

        >>> [int(one) for (one,) in ResizedCrop(scale=1, ratio=1).boxes(np.zeros((1, 22)), 8, 8)]
        [0, 0, 8, 8]
        """
        height, width = (np.broadcast_to(one, len(u))[:, None] for one in (height, width))
        area = height * width * (self.scale + (1 - self.scale) * u[:, :TRIES])
        shape = np.exp(math.log(self.ratio) * (2 * u[:, TRIES:-2] - 1))
        # The last column is what fits in any case: the middle, cut to an allowed shape.
        middle_h = np.minimum(height, np.rint(width * self.ratio))
        middle_w = np.minimum(width, np.rint(height * self.ratio))
        h = np.concatenate([np.rint(np.sqrt(area / shape)), middle_h], 1).astype(int)
        w = np.concatenate([np.rint(np.sqrt(area * shape)), middle_w], 1).astype(int)
        fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
        first = fits.argmax(1)[:, None]
        h, w = (np.take_along_axis(one, first, 1)[:, 0] for one in (h, w))
        free = np.stack([height[:, 0] - h, width[:, 0] - w], 1)
        corner = np.where(first == TRIES, free // 2, (u[:, -2:] * (free + 1)).astype(int))
        return corner[:, 0], corner[:, 1], h, w

    @override
    def __call__(self, x: Float[Tensor, "n c h w"], u: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        height, width = x.shape[2:]
        found = np.stack(self.boxes(u.double().cpu().numpy(), height, width)).astype(np.float32)
        top, left, h, w = torch.from_numpy(found).to(x.device)
        # From -1 to 1 across the image, as grid_sample counts.
        theta = torch.zeros(len(x), 2, 3, device=x.device)
        theta[:, 0, 0], theta[:, 0, 2] = w / width, (2 * left + w) / width - 1
        theta[:, 1, 1], theta[:, 1, 2] = h / height, (2 * top + h) / height - 1
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


KINDS: dict[str, type[Flip] | type[Crop] | type[Cutout] | type[ResizedCrop]] = {
    "flip": Flip,
    "alternating-flip": AlternatingFlip,
    "crop": Crop,
    "reflected-crop": ReflectedCrop,
    "cutout": Cutout,
    "resized-crop": ResizedCrop,
}


def augmentations(text: str) -> tuple[Augmentation, ...]:
    """What a specification names, in its order.

    Raises:
        ValueError: if it names something else, or gives it what can't be.

    >>> augmentations("flip+crop:padding=2")
    (Flip(), Crop(padding=2))
    """
    return tuple(_one(part, text) for part in text.split("+")) if text else ()


def _one(part: str, text: str) -> Augmentation:
    name, _, rest = part.strip().partition(":")
    if name not in KINDS:
        raise ValueError(f"augment {text!r} has no {name!r}; {nearest(name, KINDS)} (several: flip+crop:padding=4)")
    given = [option.partition("=") for option in rest.split(",")] if rest else []
    known = [one.name for one in fields(KINDS[name])]
    options = {}
    for key, _, value in given:
        if key not in known:
            raise ValueError(f"augment {part!r} has no option {key!r}; {name} has {', '.join(known) or 'none'}")
        try:
            options[key] = float(value) if "." in value else int(value)
        except ValueError:
            raise ValueError(f"augment {part!r}: {key} must be a number, got {value!r}") from None
    try:
        return KINDS[name](**options)
    except ValueError as error:
        raise ValueError(f"augment {part!r}: {error}") from None


def drawn(count: int, numbers: int, seed: int, epoch: int, batch: int, what: int) -> np.ndarray:
    """Random numbers from 0 to below 1, float32 [count, numbers], which these whole numbers alone decide.

    >>> bool((drawn(2, 3, seed=0, epoch=1, batch=5, what=0) == drawn(2, 3, seed=0, epoch=1, batch=5, what=0)).all())
    True
    """
    return np.random.default_rng([seed, epoch, batch, what]).random((count, numbers), dtype=np.float32)
