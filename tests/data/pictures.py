"""Data sets made for tests: pictures, folders in the hub's layout, and what is refused."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from apical import data
from apical.data import DataError

MNIST = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist"


CIFAR10 = MNIST.parent / "cifar10"


GREY, COLOUR = (5, 7), (5, 7, 3)  # height, width (, channels) of numpy images; different, so that a swap shows


def pictures(n, shape=GREY, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def png(array, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png", **options)
    return stream.getvalue()


def write(folder, split, images, labels, *, image="image", label="label", features=None, **more):
    """A split of a hub-like folder. `images`: numpy arrays, Pillow images, or encoded bytes."""
    cells = [
        {"bytes": picture, "path": None}
        if isinstance(picture, bytes) or picture is None
        else (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture)
        for picture in images
    ]
    cells = [None if cell == {"bytes": None, "path": None} else cell for cell in cells]
    if features is None:
        features = {image: datasets.Image(), label: datasets.ClassLabel(num_classes=3)}
        features |= {key: datasets.Value("int64") for key in more}
    table = datasets.Dataset.from_dict({image: cells, label: labels, **more}, features=datasets.Features(features))
    Path(folder).mkdir(parents=True, exist_ok=True)
    table.to_parquet(Path(folder) / f"{split}-00000-of-00001.parquet")


def relabel(path, labels):
    """Put labels that `datasets` would refuse to write into a parquet file."""
    table = pyarrow.parquet.read_table(path)
    field = table.schema.field("label")
    table = table.set_column(table.schema.get_field_index("label"), field, pyarrow.array(labels, field.type))
    pyarrow.parquet.write_table(table, path)


def unnamed(path, labels):
    """Put labels into a parquet file, of plain whole numbers instead of named classes."""
    table = pyarrow.parquet.read_table(path).replace_schema_metadata(None)
    kind = pyarrow.uint64() if max(labels) >= 2**63 else pyarrow.int64()
    table = table.set_column(table.schema.get_field_index("label"), "label", pyarrow.array(labels, kind))
    pyarrow.parquet.write_table(table, path)


def emptied(path, out):
    """A parquet file like another, without rows."""
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), out)


def entries(cache):
    return [path for path in cache.iterdir() if not path.name.startswith(".")] if cache.exists() else []


def leftovers(cache):
    return [path for path in cache.iterdir() if path.name.endswith(".writing")] if cache.exists() else []


def refused(*words, name, cache, **options):
    """Loading fails early, with a message that has all the words, and leaves nothing in the cache."""
    with pytest.raises(DataError) as caught:
        data.load(str(name), cache=cache, **options)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert entries(cache) == []
    assert leftovers(cache) == []
    return message


def assert_holds(split, images, labels):
    """The split's values are those of numpy images [H, W] or [H, W, C]."""
    expected = np.stack([image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in images])
    assert split.images.dtype == torch.uint8
    assert split.labels.dtype == torch.int64
    np.testing.assert_array_equal(split.images.numpy(), expected)
    assert split.labels.tolist() == list(labels)
    assert len(split) == len(labels)


def in_memory_splits(made):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": [Image.fromarray(image) for image in images], "label": labels}, features=features
            )
            for split, (images, labels) in made.items()
        }
    )


def png_of(image, **options):
    stream = io.BytesIO()
    image.save(stream, "png", **options)
    return stream.getvalue()
