"""Made-up sets in the layouts of real ones: ImageNet's class folders, WebDataset's tar shards, the hub's parquet files.

`python tests/data/streaming/made_up.py FOLDER` writes 20 000 JPEGs of mixed sizes in 1000 classes, in ImageNet's layout.
"""

import io
import sys
import tarfile
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
    noise = np.random.default_rng(number).integers(-9, 10, (height, width, 3)) if kind == "jpeg" else 0
    colour = FIRST + STEP * (number // LEVELS ** np.arange(3) % LEVELS)
    stream = io.BytesIO()
    pixels = np.broadcast_to(colour + noise, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return stream.getvalue()


def numbers(x):
    """The numbers of images in a batch [n, 3, h, w] from 0 to 1, by their mean colours."""
    levels = ((x.mean((2, 3)) * 255 - FIRST) / STEP).round().long()
    return (levels * torch.tensor([1, LEVELS, LEVELS**2])).sum(1).tolist()


def made(n, classes, sizes, kind="png", first=0):
    """(encoded image, label) of `n` images; labels in a random order that is always the same."""
    labels = np.random.default_rng(first).permutation(np.arange(n) % classes)
    return [(picture(first + i, sizes, kind), int(label)) for i, label in enumerate(labels)]


def write(folder, layout, splits, *, per_shard=7, kind="png", classes=3):
    """A data set in one of the layouts. splits: name -> what `made` gave."""
    for split, images in splits.items():
        place = Path(folder) / split if layout == "folders" else Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if layout == "folders":
            for label in {label for _, label in images}:
                (place / f"n{label:04}").mkdir(exist_ok=True)
            for number, (encoded, label) in enumerate(images):
                (place / f"n{label:04}" / f"{split}_{number:06}.{kind.upper()}").write_bytes(encoded)
        elif layout == "tar":
            for first in range(0, len(images), per_shard):
                shard(place / f"made-up-{split}-{first // per_shard:06}.tar", images[first : first + per_shard], kind)
        else:
            table = datasets.Dataset.from_dict(
                {"image": [{"bytes": one, "path": None} for one, _ in images], "label": [label for _, label in images]},
                features=datasets.Features(
                    {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)}
                ),
            )
            half = -(-len(images) // 2)
            for part in range(2):
                rows = table.select(range(part * half, min(len(images), (part + 1) * half)))
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


def imagenet(folder, n=20_000, classes=1000, test=1000, sizes=SIZES):
    """A made-up ImageNet: class folders of JPEGs in mixed sizes."""
    splits = {"train": made(n, classes, sizes, "jpeg"), "val": made(test, classes, sizes, "jpeg", first=n)}
    return write(folder, "folders", splits, kind="jpeg", classes=classes)


if __name__ == "__main__":
    imagenet(sys.argv[1])
