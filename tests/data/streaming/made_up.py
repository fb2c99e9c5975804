"""Made-up sets in the layouts of real ones: ImageNet's class folders, WebDataset's tar shards, the hub's parquet files.

`python tests/data/streaming/made_up.py FOLDER [LAYOUT]` writes 20 000 JPEGs of mixed sizes in 1000 classes, in class folders, or
in another of the layouts.
"""

import functools
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

LAYOUTS = ("folders", "tar", "parquet")
FIRST, STEP, LEVELS = 12, 8, 28


def picture(number, sizes, kind="png"):
    """Encoded: noise on a colour that tells the image's number (see `numbers`), whatever part of it is looked at."""
    height, width = sizes[number % len(sizes)]
    colour = (FIRST + STEP * (number // LEVELS ** np.arange(3) % LEVELS)).astype(np.uint8)
    pixels = np.broadcast_to(colour + (noise(height, width) if kind == "jpeg" else np.uint8(0)), (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"quality": 95} if kind == "jpeg" else {}))
    return stream.getvalue()


@functools.cache
def noise(height, width):
    """Numbers from -9 to 9, which bytes hold modulo 256; of a photograph's size they make about as large a file."""
    return np.random.default_rng(height * width).integers(-9, 10, (height, width, 3)).astype(np.uint8)


def numbers(x):
    """The numbers of images in a batch [n, 3, h, w] from 0 to 1, by their mean colours."""
    levels = ((x.mean((2, 3)) * 255 - FIRST) / STEP).round().long()
    return (levels * torch.tensor([1, LEVELS, LEVELS**2])).sum(1).tolist()


def made(n, classes, sizes, kind="png", first=0):
    """(encoded image, label) of `n` images; labels in a random order that is always the same."""
    labels = np.random.default_rng(first).permutation(np.arange(n) % classes)
    return [(picture(first + i, sizes, kind), int(label)) for i, label in enumerate(labels)]


class Coming(Sequence):
    """What `made` would give, made when it is asked for: photographs in great numbers are large."""

    def __init__(self, n, classes, sizes, first=0):
        self.sizes, self.first = sizes, first
        self.labels = np.random.default_rng(first).permutation(np.arange(n) % classes).tolist()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if index >= len(self):
            raise IndexError(index)
        return picture(self.first + index, self.sizes, "jpeg"), self.labels[index]


def write(folder, layout, splits, *, per_shard=7, kind="png", classes=3):
    """A data set in one of the layouts. splits: name -> what `made` gave."""
    for split, images in splits.items():
        place = Path(folder) / split if layout == "folders" else Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if layout == "folders":
            for number, (encoded, label) in enumerate(images):
                (place / f"n{label:04}").mkdir(exist_ok=True)
                (place / f"n{label:04}" / f"{split}_{number:06}.{kind.upper()}").write_bytes(encoded)
        elif layout == "tar":
            for first in range(0, len(images), per_shard):
                shard(place / f"made-up-{split}-{first // per_shard:06}.tar", images[first : first + per_shard], kind)
        else:
            features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)}
            half = -(-len(images) // 2)
            for part in range(2):
                own, labels = zip(*images[part * half : (part + 1) * half], strict=True)
                columns = {"image": [{"bytes": one, "path": None} for one in own], "label": labels}
                rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
                rows.to_parquet(place / f"{split}-0000{part}-of-00002.parquet", batch_size=per_shard)
    return Path(folder)


def shard(path, images, kind="png", labels=True):
    with tarfile.open(path, "w") as tar:
        for number, (encoded, label) in enumerate(images):
            files = {kind: encoded, **({"cls": str(label).encode()} if labels else {})}
            for ending, content in files.items():
                member = tarfile.TarInfo(f"{number:06}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


SIZES = [(375, 500), (500, 333), (240, 320), (300, 300), (64, 48)]


def imagenet(folder, n=20_000, classes=1000, test=1000, sizes=SIZES, layout="folders"):
    """A made-up ImageNet: JPEGs in mixed sizes."""
    splits = {"train": Coming(n, classes, sizes), "val": Coming(test, classes, sizes, first=n)}
    return write(folder, layout, splits, kind="jpeg", classes=classes, per_shard=7 if n < 10_000 else 500)


if __name__ == "__main__":
    imagenet(sys.argv[1], layout=(*sys.argv, "folders")[2])
