"""Data: every image exactly as it was encoded, nothing stale or damaged, and an answer to every bad input."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from apical import data
from apical.data import DataError, ImageData, Split
from apical.data import cache as cache_module
from apical.data import decode as decode_module
from apical.data.cache import Cache, DamagedError

MNIST = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "mnist"
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


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Six grey training images and three for testing."""
    write(tmp_path / "set", "train", pictures(6), [0, 1, 2, 0, 1, 2])
    write(tmp_path / "set", "test", pictures(3, seed=1), [2, 1, 0])
    return tmp_path / "set"


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


# --- digits ---


def test_digits_are_all_there_once_and_in_proportion():
    digits = data.load()
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    assert (digits.name, digits.shape, digits.features, digits.classes) == ("digits", (1, 8, 8), 64, 10)
    assert digits.class_names == tuple("0123456789")
    for split in (digits.train, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
    bundled = load_digits()
    count = np.bincount(bundled.target)
    np.testing.assert_array_equal(np.bincount(digits.test.labels), count // 5)
    np.testing.assert_array_equal(np.bincount(digits.train.labels), count - count // 5)
    ours = sorted(
        (image.numpy().tobytes(), int(label))
        for split in (digits.train, digits.test)
        for image, label in zip(split.images, split.labels, strict=True)
    )
    rescaled = np.floor(bundled.images * 255 / 16 + 0.5).astype(np.uint8)
    theirs = sorted((image.tobytes(), int(label)) for image, label in zip(rescaled, bundled.target, strict=True))
    assert ours == theirs
    assert len({image for image, _ in ours}) == 1797  # so equal multisets mean that the splits don't overlap


def test_digits_are_split_the_same_way_everywhere():
    digits = data.load("digits")
    assert hashlib.sha256(digits.test.images.numpy().tobytes()).hexdigest()[:16] == "747b8e40cc4d21a2"
    assert int(digits.train.images.max()) == 255


def test_digits_need_neither_disk_nor_network(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("asked the hub"))
    data.load("digits")
    data.load("digits", in_memory=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["test_split", "image_column", "label_column"])
def test_digits_refuse_choices_that_would_do_nothing(option):
    with pytest.raises(DataError, match=option):
        data.load("digits", **{option: "x"})


def test_importing_is_not_slowed_by_what_may_not_be_needed():
    code = "import sys, apical.data; print([m for m in ('datasets', 'sklearn', 'pyarrow', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout.strip() == b"[]"


# --- batches ---


@given(st.integers(0, 200), st.integers(1, 210), st.booleans(), st.integers(0, 2**40))
def test_batches_hold_every_index_once(n, size, drop_last, seed):
    epoch = list(data.batches(n, size, generator=torch.Generator().manual_seed(seed), drop_last=drop_last))
    flat = [int(i) for batch in epoch for i in batch]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(n))
    assert len(flat) == (n - n % size if drop_last else n)
    assert all(len(batch) == size for batch in epoch[:-1])
    assert all(len(batch) > 0 and batch.dtype == torch.int64 for batch in epoch)
    again = list(data.batches(n, size, generator=torch.Generator().manual_seed(seed), drop_last=drop_last))
    assert all(torch.equal(a, b) for a, b in zip(epoch, again, strict=True))


def test_batches_are_shuffled_anew_by_the_generator_alone():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (torch.cat(list(data.batches(100, 7, generator=generator))) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(100))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epochs_order_is_drawn_when_it_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    epoch = data.batches(10, 4, generator=generator)
    state = generator.get_state()
    list(epoch)
    assert torch.equal(generator.get_state(), state)
    assert not torch.equal(torch.Generator().manual_seed(0).get_state(), state)


@pytest.mark.parametrize(("n", "size", "word"), [(-1, 1, "n has"), (5, 0, "size"), (5, -2, "size")])
def test_batches_of_no_size_are_refused_at_once(n, size, word):
    with pytest.raises(DataError, match=word):
        data.batches(n, size, generator=torch.Generator())


@given(st.data())
def test_a_batch_is_the_bytes_divided_by_255(draw):
    n, c, h, w = draw.draw(st.tuples(st.integers(1, 9), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)))
    values = np.random.default_rng(draw.draw(st.integers(0, 999))).integers(0, 256, (n, c, h, w), dtype=np.uint8)
    labels = torch.arange(n) * 7
    index = draw.draw(st.lists(st.integers(0, n - 1), max_size=12))
    images, found = Split(torch.from_numpy(values), labels).batch(torch.tensor(index, dtype=torch.int64))
    assert images.dtype == torch.float32
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(images.numpy(), values[index].astype(np.float32) / np.float32(255))
    assert found.tolist() == [7 * i for i in index]


def test_a_batch_is_a_copy():
    split = Split(torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8), torch.arange(4))
    split.batch(torch.tensor([1]))[0].zero_()
    assert split.images.flatten().tolist() == list(range(256))


@pytest.mark.parametrize("index", [[-1], [0, 4]])
def test_a_batch_of_samples_that_are_not_there_is_refused(index):
    with pytest.raises(IndexError):
        Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)).batch(torch.tensor(index))


BYTES = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (BYTES.float(), LABELS, "uint8.*float32"),
        (BYTES[:, 0], LABELS, r"uint8 \[N, C, H, W\].*\[4, 2, 2\]"),
        (BYTES, LABELS.int(), "int64.*int32"),
        (BYTES, LABELS[:3], "4 images and 3 labels"),
    ],
)
def test_tensors_that_are_no_split_are_refused(images, labels, words):
    with pytest.raises(DataError, match=words):
        Split(images, labels)


def test_splits_that_are_no_data_set_are_refused():
    good, names = Split(BYTES, LABELS), ("a", "b", "c", "d")
    with pytest.raises(DataError, match="one shape"):
        ImageData("x", good, Split(BYTES[..., :1], LABELS), 4, names)
    with pytest.raises(DataError, match="4 classes can't have 3 names"):
        ImageData("x", good, good, 4, names[:3])
    with pytest.raises(DataError, match=r"split 'test', row 3: label 9"):
        ImageData("x", good, Split(BYTES, torch.tensor([0, 1, 2, 9])), 4, names)


# --- decoding ---


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    colour=st.booleans(),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    counts=st.tuples(st.integers(1, 300), st.integers(1, 4)),
    in_memory=st.sampled_from([True, False, None]),
)
def test_images_come_back_bit_by_bit(colour, size, counts, in_memory):
    shape = (*size, 3) if colour else size
    with tempfile.TemporaryDirectory() as home:
        made = {
            s: (pictures(n, shape, n), [i % 3 for i in range(n)])
            for s, n in zip(("train", "test"), counts, strict=True)
        }
        for split, (images, labels) in made.items():
            write(Path(home) / "set", split, images, labels)
        for _ in range(2):  # decoded, then from the cache
            loaded = data.load(f"{home}/set", cache=Path(home) / "cache", in_memory=in_memory)
            assert_holds(loaded.train, *made["train"])
            assert_holds(loaded.test, *made["test"])
            assert loaded.shape == ((3 if colour else 1), *size)
            assert loaded.features == np.prod(shape)
            del loaded


def test_names_and_classes_come_with_the_data(folder, cache):
    features = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dög", "ox"])}
    write(folder, "train", pictures(2), [0, 1], image="img", label="kind", features=features)
    write(folder, "test", pictures(2), [1, 0], image="img", label="kind", features=features)
    loaded = data.load(str(folder), cache=cache)
    assert (loaded.name, loaded.classes, loaded.class_names) == (str(folder), 3, ("cat", "dög", "ox"))


@pytest.mark.parametrize("layout", ["parquet", "arrow"])
def test_splits_that_count_through_other_classes_are_refused(tmp_path, cache, layout):
    """Encoded one by one, with a class that only one of them has."""
    splits = {"train": ["ant", "bee", "cat"], "test": ["bee", "cat"]}
    made = {}
    for split, names in splits.items():
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        write(tmp_path / "in", split, pictures(len(names)), list(range(len(names))), features=features)
        made[split] = datasets.Dataset.from_parquet(
            str(tmp_path / "in" / f"{split}-00000-of-00001.parquet"), cache_dir=str(tmp_path / "kept" / split)
        )
    if layout == "arrow":
        datasets.DatasetDict(made).save_to_disk(tmp_path / "out")
    with pytest.raises(DataError, match=r"'label'.* stand for other classes.*ClassLabel\(names="):
        data.load(str(tmp_path / ("in" if layout == "parquet" else "out")), cache=cache)


def test_labels_may_be_plain_whole_numbers(tmp_path, cache):
    features = {"image": datasets.Image(), "label": datasets.Value("uint8"), "id": datasets.Value("int64")}
    write(tmp_path / "set", "train", pictures(2), [0, 2], features=features, id=[7, 8])
    write(tmp_path / "set", "test", pictures(2), [4, 0], features=features, id=[7, 8])
    loaded = data.load(str(tmp_path / "set"), cache=cache)
    assert (loaded.classes, loaded.class_names) == (5, ("0", "1", "2", "3", "4"))
    assert loaded.test.labels.tolist() == [4, 0]


def test_fine_labels_go_before_coarse_ones_and_choices_before_both(tmp_path, cache):
    features = {
        "img": datasets.Image(),
        "coarse_label": datasets.ClassLabel(num_classes=2),
        "fine_label": datasets.ClassLabel(num_classes=5),
        "depth": datasets.Image(),
    }
    depth = [Image.fromarray(picture) for picture in pictures(2, (2, 2), 5)]
    for split in ("train", "test"):
        fine = {"image": "img", "label": "fine_label", "coarse_label": [0, 1], "depth": depth}
        write(tmp_path / "set", split, pictures(2), [3, 4], features=features, **fine)
    loaded = data.load(str(tmp_path / "set"), cache=cache)
    assert (loaded.classes, loaded.train.labels.tolist(), loaded.shape) == (5, [3, 4], (1, 5, 7))
    loaded = data.load(str(tmp_path / "set"), cache=cache, label_column="coarse_label", image_column="depth")
    assert (loaded.classes, loaded.train.labels.tolist(), loaded.shape) == (2, [0, 1], (1, 2, 2))
    loaded = data.load(str(tmp_path / "set"), cache=cache)
    assert loaded.classes == 5


@pytest.mark.parametrize("stored", ["struct", "binary"])
def test_encoded_bytes_are_images_even_if_the_file_does_not_say_so(tmp_path, cache, stored):
    images = pictures(3)
    cells = [png(image) if stored == "binary" else {"bytes": png(image)} for image in images]
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        table = pyarrow.table({"image": cells, "label": [2, 0, 1]})
        pyarrow.parquet.write_table(table, tmp_path / "set" / f"{split}.parquet")
    assert_holds(data.load(str(tmp_path / "set"), cache=cache).train, images, [2, 0, 1])


def test_a_folder_of_picture_files_is_read(tmp_path, cache):
    images = pictures(4, COLOUR)
    for number, image in enumerate(images):
        for split in ("train", "test"):
            home = tmp_path / "set" / split / ("cat", "dog")[number // 2]
            home.mkdir(parents=True, exist_ok=True)
            (home / f"{number}.png").write_bytes(png(image))
    loaded = data.load(str(tmp_path / "set"), cache=cache)
    assert loaded.class_names == ("cat", "dog")
    assert_holds(loaded.train, images, [0, 0, 1, 1])


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_without_a_test_split_validation_is_taken(tmp_path, cache, name, monkeypatch):
    made = {"train": (pictures(2), [0, 1]), name: (pictures(2, seed=4), [1, 2])}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: in_memory_splits(made))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "file").touch()
    assert_holds(data.load(str(tmp_path / "set"), cache=cache).test, *made[name])


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


def test_the_test_split_can_be_chosen(folder, cache):
    write(folder, "validation", pictures(2, seed=9), [1, 1])
    assert len(data.load(str(folder), cache=cache).test) == 3
    assert_holds(data.load(str(folder), cache=cache, test_split="validation").test, pictures(2, seed=9), [1, 1])
    assert len(data.load(str(folder), cache=cache).test) == 3


@pytest.mark.parametrize("order", [[GREY, COLOUR], [COLOUR, GREY]])
def test_grey_images_among_coloured_ones_become_coloured(tmp_path, cache, order):
    train, test = ([pictures(1, shape, 3)[0] for shape in shapes] for shapes in (order, [GREY]))
    write(tmp_path / "set", "train", train, [0, 1])
    write(tmp_path / "set", "test", test, [2])
    loaded = data.load(str(tmp_path / "set"), cache=cache)
    as_colour = [np.stack([image] * 3, axis=2) if image.ndim == 2 else image for image in (*train, *test)]
    assert_holds(loaded.train, as_colour[:2], [0, 1])
    assert_holds(loaded.test, as_colour[2:], [2])


def test_colour_that_only_the_test_split_has_counts_too(tmp_path, cache):
    train, test = pictures(2), pictures(2, COLOUR)
    write(tmp_path / "set", "train", train, [0, 1])
    write(tmp_path / "set", "test", test, [0, 1])
    loaded = data.load(str(tmp_path / "set"), cache=cache)
    assert_holds(loaded.train, [np.stack([image] * 3, axis=2) for image in train], [0, 1])
    assert_holds(loaded.test, test, [0, 1])


def test_alpha_palettes_and_one_bit_images_become_plain(tmp_path, cache):
    grey, colour, alpha = pictures(1)[0], pictures(1, COLOUR)[0], pictures(1, seed=8)[0]
    grey_alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    bits = Image.fromarray(grey).convert("1")
    write(tmp_path / "grey", "train", [grey_alpha, bits], [0, 1])
    write(tmp_path / "grey", "test", [grey], [0])
    assert_holds(data.load(str(tmp_path / "grey"), cache=cache).train, [grey, np.array(bits) * np.uint8(255)], [0, 1])

    rgba = Image.fromarray(colour).copy()
    rgba.putalpha(Image.fromarray(alpha))
    indices = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]], dtype=np.uint8)
    indexed = Image.fromarray(indices)
    indexed.putpalette(palette.flatten().tolist())
    clear = png_of(indexed, transparency=bytes([0, 128, 255, 255]))
    write(tmp_path / "colour", "train", [rgba, indexed, clear], [0, 1, 2])
    write(tmp_path / "colour", "test", [colour], [0])
    expected = [colour, palette[indices], palette[indices]]
    assert_holds(data.load(str(tmp_path / "colour"), cache=cache).train, expected, [0, 1, 2])


def png_of(image, **options):
    stream = io.BytesIO()
    image.save(stream, "png", **options)
    return stream.getvalue()


def test_progress_bars_are_left_as_they_were(folder, cache, capfd):
    assert not datasets.are_progress_bars_disabled()
    data.load(str(folder), cache=cache)
    assert not datasets.are_progress_bars_disabled()
    captured = capfd.readouterr()
    assert "split" not in captured.err.replace("Creating parquet", "")
    assert captured.out == ""


# --- cache ---


def no_decoding(monkeypatch):
    monkeypatch.setattr("apical.data.loading.decode", lambda *_, **__: pytest.fail("decoded again"))


def test_what_was_decoded_is_not_decoded_again(folder, cache, monkeypatch):
    data.load(str(folder), cache=cache)
    no_decoding(monkeypatch)
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])
    monkeypatch.chdir(folder.parent)  # by whatever path
    for name in ("set", "./set", f"../{folder.parent.name}/set"):
        assert data.load(name, cache=cache).name == name


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"APICAL_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/apical"),
        ({"HOME": "home"}, "home/.cache/apical"),
    ],
)
def test_the_cache_lies_where_the_platform_says(folder, tmp_path, monkeypatch, environment, expected):
    for name in ("APICAL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    data.load(str(folder))
    assert len(entries(tmp_path / expected)) == 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_mapped_images_stay_on_disk_and_the_cache_safe_from_changes(folder, cache):
    mapped = data.load(str(folder), cache=cache, in_memory=False)
    with Path("/proc/self/maps").open() as maps:
        assert sum(f"{cache}/" in line for line in maps) == 2
    mapped.train.images.zero_()
    assert mapped.train.batch(torch.tensor([0]))[0].sum() == 0
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(("memory", "mapped"), [(4 * 35 * 9, False), (4 * 35 * 9 - 4, True)])
def test_images_beyond_a_quarter_of_memory_are_mapped(folder, cache, monkeypatch, memory, mapped):
    monkeypatch.setattr(os, "sysconf", lambda key: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}[key])
    loaded = data.load(str(folder), cache=cache)
    with Path("/proc/self/maps").open() as maps:
        assert any(str(cache) in line for line in maps) == mapped
    assert_holds(loaded.train, pictures(6), [0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("same_size", [True, False])
def test_changed_files_are_not_served_stale(folder, cache, same_size):
    data.load(str(folder), cache=cache)
    path = folder / "train-00000-of-00001.parquet"
    before = path.stat()
    if same_size:
        relabel(path, [1, 1, 1, 0, 0, 0])
        size = path.stat().st_size
        data.load(str(folder), cache=cache)
        relabel(path, [0, 0, 0, 1, 1, 1])
        assert path.stat().st_size == size
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 5))
    else:
        write(folder, "train", pictures(2, seed=5), [0, 0])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = data.load(str(folder), cache=cache).train.labels.tolist()
    assert found == ([0, 0, 0, 1, 1, 1] if same_size else [0, 0])
    assert len(entries(cache)) == 1  # the old one is gone


def test_an_added_file_is_noticed(folder, cache):
    data.load(str(folder), cache=cache)
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    write(folder / "more", "train", pictures(2, seed=5), [2, 2])
    (folder / "more" / "train-00000-of-00001.parquet").rename(folder / "train-00001-of-00002.parquet")
    assert len(data.load(str(folder), cache=cache).train) == 8


def test_a_change_behind_a_link_is_noticed(folder, cache):
    linked = folder.with_name("linked")
    linked.mkdir()
    (linked / "data").symlink_to(folder, target_is_directory=True)
    assert len(data.load(str(linked), cache=cache).test) == 3
    write(folder, "test", pictures(2, seed=5), [2, 2])
    assert_holds(data.load(str(linked), cache=cache).test, pictures(2, seed=5), [2, 2])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small data set's cache, its entry, and the files' bytes."""
    home = tmp_path_factory.mktemp("written")
    write(home / "set", "train", pictures(2), [0, 1])
    write(home / "set", "test", pictures(1, seed=1), [2])
    data.load(str(home / "set"), cache=home / "cache")
    (entry,) = entries(home / "cache")
    return Cache(home / "cache", "x", None), entry, {path.name: path.read_bytes() for path in entry.iterdir()}


FILES = ["manifest.json", "train-images.u8", "train-labels.i64", "test-images.u8", "test-labels.i64"]


@settings(max_examples=200, deadline=None)
@given(
    file=st.sampled_from(FILES[1:]),
    where=st.floats(0, 1, exclude_max=True),
    change=st.integers(1, 255),
    memory=st.booleans(),
)
def test_a_changed_byte_is_noticed(written, file, where, change, memory):
    cache, entry, content = written
    damaged = bytearray(content[file])
    damaged[int(where * len(damaged))] ^= change
    (entry / file).write_bytes(damaged)
    try:
        with pytest.raises(DamagedError, match=file):
            cache.read(entry, "x", memory)
    finally:
        (entry / file).write_bytes(content[file])
    assert cache.read(entry, "x", memory) is not None


def test_a_changed_byte_of_the_manifest_is_noticed(written):
    cache, entry, content = written
    whole = content["manifest.json"]
    try:
        for position in range(len(whole) - 1):  # the last one ends the line
            for change in (1, 128):
                damaged = bytearray(whole)
                damaged[position] ^= change
                (entry / "manifest.json").write_bytes(damaged)
                with pytest.raises(DamagedError):
                    cache.read(entry, "x", True)
    finally:
        (entry / "manifest.json").write_bytes(whole)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "gone"])
def test_damage_is_reported_and_mended(written, file, damage):
    cache, entry, content = written
    source = cache.root.parent / "set"
    changed = {"cut": content[file][:-2], "longer": content[file] + b"\0", "empty": b"", "gone": None}[damage]
    if changed is None:
        (entry / file).unlink()
    else:
        (entry / file).write_bytes(changed)
    if (file, damage) == ("manifest.json", "gone"):  # as after an unfinished deletion: there is no entry
        found = data.load(str(source), cache=cache.root)
    else:
        with pytest.warns(UserWarning, match=f"damaged.*{file}.*again"):
            found = data.load(str(source), cache=cache.root)
    assert_holds(found.train, pictures(2), [0, 1])
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == content
    assert leftovers(cache.root) == []


def test_damage_is_not_served_where_the_source_is_gone(folder, cache):
    data.load(str(folder), cache=cache)
    (entry,) = entries(cache)
    (entry / "train-images.u8").write_bytes(b"x" * 210)
    folder.rename(folder.with_name("away"))
    with pytest.raises(DataError, match="does not exist"):
        data.load(str(folder), cache=cache)


KILLED = """
import os, signal, sys
from pathlib import Path
from apical import data
from apical.data import cache, decode
module, name, calls = {"decoding": (decode, "_pixels", 4), "moving": (cache, "_move", 1)}[sys.argv[3]]
original = getattr(module, name)
def dying(*given):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*given)
setattr(module, name, dying)
data.load(sys.argv[1], cache=Path(sys.argv[2]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("when", ["decoding", "moving"])
def test_a_killed_writer_leaves_nothing_that_is_served(folder, cache, when):
    command = [sys.executable, "-c", KILLED, str(folder), str(cache), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert entries(cache) == []
    assert len(leftovers(cache)) == 1
    assert_holds(data.load(str(folder), cache=cache).train, pictures(6), [0, 1, 2, 0, 1, 2])
    assert len(entries(cache)) == 1
    assert leftovers(cache) == []


RACER = """
import sys
from pathlib import Path
from apical import data
from apical.data import loading
original, decoded = loading.decode, []
def counting(*given):
    decoded.append(1)
    return original(*given)
loading.decode = counting
print("ready", flush=True)
sys.stdin.readline()
found = data.load(sys.argv[1], cache=Path(sys.argv[2]))
print(len(decoded), hash(found.train.images.numpy().tobytes()), found.train.labels.tolist())
"""


def test_processes_that_load_at_once_decode_once(folder, cache):
    command = [sys.executable, "-W", "error", "-c", RACER, str(folder), str(cache)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    answers = [[] for _ in racers]
    threads = [
        threading.Thread(
            target=lambda racer=racer, answer=answer: answer.extend(racer.communicate("go\n")[0].split(" ", 1))
        )
        for racer, answer in zip(racers, answers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(int(decoded) for decoded, _ in answers) == [0, 1]
    assert len({rest for _, rest in answers}) == 1
    assert len(entries(cache)) == 1
    assert leftovers(cache) == []


def test_readers_see_all_or_nothing_while_a_writer_replaces_an_entry(folder, cache):
    """A reader that never stops, against a writer that damages and mends; what is served is always whole."""
    data.load(str(folder), cache=cache)
    (entry,) = entries(cache)
    kept = Cache(cache, "x", None)
    served, wrong, stop = [], [], threading.Event()

    def read():
        while not stop.is_set():
            try:
                found = kept.read(entry, "x", True)
            except DamagedError:
                continue
            if found is not None:
                served.append(1)
                if found.train.images.numpy().tobytes() != np.stack(pictures(6)).tobytes():
                    wrong.append(1)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        (entry / "train-images.u8").write_bytes(b"x" * 210)
        with pytest.warns(UserWarning, match="damaged"):
            data.load(str(folder), cache=cache)
        time.sleep(0.002)
    stop.set()
    reader.join()
    assert served
    assert wrong == []


def test_a_full_disk_is_said_and_leaves_nothing(folder, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode_module, "_pixels", full)
    refused("No space left", str(cache), "APICAL_CACHE", name=folder, cache=cache)


def test_a_cache_that_cannot_be_a_folder_is_said(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/cache can't be written.*APICAL_CACHE"):
        data.load(str(folder), cache=tmp_path / "file" / "cache")


def test_a_disk_that_does_not_keep_what_is_written_is_said(folder, cache, monkeypatch):
    original = cache_module._move

    def forgetful(new, entry, old):
        original(new, entry, old)
        (entry / "test-images.u8").write_bytes(b"\0" * 105)

    monkeypatch.setattr(cache_module, "_move", forgetful)
    with pytest.raises(DataError, match="differ from what was just written"):
        data.load(str(folder), cache=cache)


def test_a_read_only_cache_can_be_read(folder, cache, monkeypatch):
    data.load(str(folder), cache=cache)
    monkeypatch.setattr(Cache, "lock", lambda _: pytest.fail("locked"))
    monkeypatch.setattr(Cache, "write", lambda *_: pytest.fail("wrote"))
    assert len(data.load(str(folder), cache=cache).train) == 6


def test_a_cache_inside_the_data_is_refused(folder):
    refused("lies in the data folder", "cache=", name=folder, cache=folder / "cache")


# --- bad input ---


@pytest.mark.parametrize(
    "name", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/nowhere", "~nobody-here/x", "a/b/c", ""]
)
def test_a_folder_that_does_not_exist_is_said(name, cache):
    refused(repr(name), "does not exist", "ylecun/mnist", name=name, cache=cache)


def test_a_file_is_no_folder(folder, cache):
    refused("is a file", "folder", name=folder / "test-00000-of-00001.parquet", cache=cache)


def test_an_empty_folder_is_said(tmp_path, cache):
    (tmp_path / "set" / "data").mkdir(parents=True)
    refused("set", "is empty", "parquet", name=tmp_path / "set", cache=cache)


def test_a_folder_without_data_is_said(tmp_path, cache):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.xyz").write_text("nothing")
    refused("set", "can't be read", "parquet", name=tmp_path / "set", cache=cache)


@pytest.mark.parametrize("damage", ["cut", "text", "hole"])
def test_a_broken_file_is_said(folder, cache, damage):
    path = folder / "train-00000-of-00001.parquet"
    write(folder, "train", pictures(200), [0] * 200)
    content = path.read_bytes()
    hole = content[: len(content) // 4] + b"\xff" * (len(content) // 4) + content[len(content) // 2 :]
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"not parquet at all", "hole": hole}[damage])
    message = refused(str(folder), name=folder, cache=cache)
    assert "can't be read" in message or (damage == "hole" and "can't be decoded" in message)


def test_a_missing_train_split_is_said(folder, cache):
    (folder / "train-00000-of-00001.parquet").unlink()
    refused("no train split", "'test'", "train-00000", name=folder, cache=cache)


def test_a_missing_test_split_is_said(folder, cache):
    (folder / "test-00000-of-00001.parquet").unlink()
    refused("no test split", "'validation'", "'train'", "test_split=", name=folder, cache=cache)


def test_a_chosen_split_that_is_not_there_is_said(folder, cache):
    refused("'holdout'", "'train', 'test'", name=folder, cache=cache, test_split="holdout")


def test_a_split_without_rows_is_said(folder, cache, monkeypatch):
    write(folder, "test", [], [])
    refused(str(folder), "no data", name=folder, cache=cache)
    empty = in_memory_splits({"train": (pictures(1), [0]), "test": ([], [])})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: empty)
    refused("split 'test' has no rows", name=folder, cache=cache)


def test_a_missing_image_column_is_said(tmp_path, cache):
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(num_classes=3)}
    for split in ("train", "test"):
        (tmp_path / "set").mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict({"text": ["a"], "label": [0]}, features=datasets.Features(features))
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")
    refused("no image column", "'text' (string)", "image_column=", name=tmp_path / "set", cache=cache)
    refused("'text'", "image_column", "string", name=tmp_path / "set", cache=cache, image_column="text")
    refused("no column 'pixels'", "'text'", name=tmp_path / "set", cache=cache, image_column="pixels")


def test_a_missing_label_column_is_said(tmp_path, cache):
    features = {"image": datasets.Image(), "caption": datasets.Value("string"), "id": datasets.Value("int64")}
    for split in ("train", "test"):
        write(tmp_path / "set", split, pictures(1), ["a"], label="caption", features=features, id=[5])
    refused(
        "no label column", "'caption' (string)", "'id' (int64)", "label_column=", name=tmp_path / "set", cache=cache
    )
    refused("'caption'", "class_encode_column", name=tmp_path / "set", cache=cache, label_column="caption")
    assert data.load(str(tmp_path / "set"), cache=cache, label_column="id").train.labels.tolist() == [5]


def test_columns_that_could_both_be_it_are_listed(tmp_path, cache):
    features = {
        "left": datasets.Image(),
        "right": datasets.Image(),
        "colour": datasets.ClassLabel(num_classes=2),
        "form": datasets.ClassLabel(num_classes=2),
    }
    right = [Image.fromarray(picture) for picture in pictures(1)]
    for split in ("train", "test"):
        more = {"right": right, "form": [1]}
        write(tmp_path / "set", split, pictures(1), [0], image="left", label="colour", features=features, **more)
    name = tmp_path / "set"
    refused("2 columns of images", "'left'", "'right'", "'image', or", "image_column=", name=name, cache=cache)
    refused(
        "2 columns of labels",
        "'colour'",
        "'form'",
        "'label', or",
        "label_column=",
        name=name,
        cache=cache,
        image_column="left",
    )
    assert data.load(str(name), cache=cache, image_column="left", label_column="form").test.labels.tolist() == [1]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("bad", [-1, 3, None])
def test_a_label_that_is_no_class_is_said(folder, cache, split, bad):
    path = folder / f"{split}-00000-of-00001.parquet"
    labels = [0, bad, 1, 2, 0, 1][: 6 if split == "train" else 3]
    relabel(path, labels)
    what = "missing" if bad is None else f"label {bad}"
    refused(str(folder), f"split {split!r}, row 1", what, name=folder, cache=cache)


@pytest.mark.parametrize(
    ("labels", "word"),
    [([0, -3], "label -3"), ([-1, -1], "label -1 is none of the 1 classes 0 ... 0"), ([0, 2**40], "hardly classes")],
)
def test_a_whole_number_that_is_no_class_is_said(tmp_path, cache, labels, word):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    for split in ("train", "test"):
        write(tmp_path / "set", split, pictures(2), labels, features=features)
    refused(word, name=tmp_path / "set", cache=cache)


def test_a_number_too_large_for_a_label_is_said(tmp_path, cache):
    features = {"image": datasets.Image(), "label": datasets.Value("uint64")}
    for split in ("train", "test"):
        write(tmp_path / "set", split, pictures(2), [0, 1], features=features)
        relabel(tmp_path / "set" / f"{split}-00000-of-00001.parquet", [0, 2**63 + 1])
    refused("'label'", "can't be classes", name=tmp_path / "set", cache=cache)


@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_several_sizes_are_refused(folder, cache, split):
    write(folder, split, [*pictures(2), *pictures(1, (7, 5))], [0, 1, 2])
    refused(f"split {split!r}, row 2", "5 x 7", "7 x 5", "resize", name=folder, cache=cache)


@pytest.mark.parametrize("bad", [b"no image", png(pictures(1, (50, 50))[0])[:200], b""])
def test_an_image_that_cannot_be_decoded_is_said(folder, cache, bad):
    write(folder, "test", [pictures(1)[0], bad], [0, 1])
    refused("split 'test', row 1", "can't be decoded", name=folder, cache=cache)


def test_a_missing_image_is_said(folder, cache):
    write(folder, "test", [pictures(1)[0], None], [0, 1])
    refused("split 'test', row 1", "'image'", "missing", name=folder, cache=cache)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_grey_images_of_more_than_8_bits_are_refused_rather_than_cut(folder, cache, dtype):
    image = (np.arange(35).reshape(5, 7) * 100).astype(dtype)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "tiff")
    write(folder, "test", [stream.getvalue()], [1])
    refused("split 'test', row 0", "8 bits", name=folder, cache=cache)


def test_a_folder_that_changes_while_it_is_read_is_said(folder, cache, monkeypatch):
    original = datasets.load_dataset

    def changing(*given, **named):
        found = original(*given, **named)
        (folder / "train-00000-of-00001.parquet").touch()
        return found

    monkeypatch.setattr(datasets, "load_dataset", changing)
    refused("has changed while it was read", name=folder, cache=cache)


# --- the hub, played by a server on this machine ---


class Hub:
    """Knows one data set, `somebody/pictures`, at a revision that can be changed."""

    def __init__(self, monkeypatch, made):
        self.made, self.sha, self.loaded, self.status = made, "a" * 40, [], 200
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                known = self.path.startswith("/api/datasets/somebody/pictures")
                status = hub.status if known else 404
                body = json.dumps({"id": "somebody/pictures", "sha": hub.sha, "tags": [], "siblings": []}).encode()
                self.send_response(status)
                if status == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{self.server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets, "load_dataset", self.load)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def load(self, name, *, revision):
        self.loaded.append((name, revision))
        return in_memory_splits(self.made)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch):
    made = Hub(monkeypatch, {"train": (pictures(3), [0, 1, 2]), "test": (pictures(2), [1, 0])})
    yield made
    made.close()


PICTURES = "somebody/pictures"


def test_a_data_set_of_the_hub_is_kept_by_its_revision(hub, cache):
    assert_holds(data.load(PICTURES, cache=cache).train, *hub.made["train"])
    assert hub.loaded == [(PICTURES, "a" * 40)]
    assert data.load(PICTURES, cache=cache).name == PICTURES
    assert len(hub.loaded) == 1
    hub.sha, hub.made["test"] = "b" * 40, (pictures(2, seed=7), [2, 2])
    assert_holds(data.load(PICTURES, cache=cache).test, *hub.made["test"])
    assert hub.loaded[1:] == [(PICTURES, "b" * 40)]
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("how", ["closed", "failing"])
def test_without_the_hub_what_was_decoded_serves_with_a_warning(hub, cache, how, monkeypatch):
    data.load(PICTURES, cache=cache)
    hub.status = 503
    if how == "closed":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=r"can't be reached.*somebody/pictures may have changed"):
        assert_holds(data.load(PICTURES, cache=cache).train, *hub.made["train"])
    (entry,) = entries(cache)
    (entry / "test-images.u8").write_bytes(b"\0" * 70)
    with pytest.raises(DataError, match=r"damaged.*can't be reached"):
        data.load(PICTURES, cache=cache)
    assert len(hub.loaded) == 1


@pytest.mark.parametrize("name", [PICTURES, "pictures"])
def test_a_hub_that_cannot_be_reached_is_said_at_once(hub, cache, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    refused(repr(name), "can't be reached", "local folder", "HF_HUB_OFFLINE=1", name=name, cache=cache)
    assert time.monotonic() - start < 5
    assert hub.loaded == []


def test_in_offline_mode_what_datasets_has_kept_serves(hub, cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for _ in range(2):  # decoded; then kept, with no warning
        assert_holds(data.load(PICTURES, cache=cache).train, *hub.made["train"])
    assert hub.loaded == [(PICTURES, None)]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    data.load(PICTURES, cache=cache)
    assert hub.loaded[1:] == [(PICTURES, "a" * 40)]  # of a revision nobody knew: decoded again


def test_in_offline_mode_without_a_copy_the_way_out_is_said(hub, cache, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refused(PICTURES, "can't be reached", "local folder", name=PICTURES, cache=cache)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_name_that_the_hub_does_not_know_is_said(hub, cache, name):
    refused(repr(name), "no such folder", "no data set of that name", "spelling", name=name, cache=cache)


def test_a_data_set_that_the_hub_cannot_deliver_is_said(hub, cache, monkeypatch):
    def failing(*_, **__):
        raise ValueError("Config name is missing")

    monkeypatch.setattr(datasets, "load_dataset", failing)
    refused(PICTURES, "Config name is missing", "folder", name=PICTURES, cache=cache)


# --- the real thing ---


@pytest.mark.skipif(not MNIST.is_dir(), reason="no local MNIST")
def test_mnist(tmp_path):
    mnist = data.load(str(MNIST), cache=tmp_path)
    assert (len(mnist.train), len(mnist.test)) == (60_000, 10_000)
    assert (mnist.shape, mnist.classes, mnist.class_names) == ((1, 28, 28), 10, tuple("0123456789"))
    assert mnist.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # The figures that everybody normalizes by.
    assert float(mnist.train.images.double().mean() / 255) == pytest.approx(0.1307, abs=5e-5)
    assert float(mnist.train.images.double().std() / 255) == pytest.approx(0.3081, abs=5e-5)
    start = time.monotonic()
    again = data.load(str(MNIST), cache=tmp_path, in_memory=False)
    assert time.monotonic() - start < 5
    assert torch.equal(again.train.images, mnist.train.images)
    assert torch.equal(again.test.labels, mnist.test.labels)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="no local CIFAR-10")
def test_cifar10(tmp_path):
    """Its test split, as both splits: five times faster than the whole, and a folder of links like the hub's own."""
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        (tmp_path / "set" / f"{split}.parquet").symlink_to(CIFAR10 / "test-00000-of-00001.parquet")
    cifar = data.load(str(tmp_path / "set"), cache=tmp_path / "cache")
    assert (len(cifar.train), len(cifar.test)) == (10_000, 10_000)
    assert (cifar.shape, cifar.classes, cifar.class_names[0]) == ((3, 32, 32), 10, "airplane")
    assert cifar.test.labels.bincount().tolist() == [1000] * 10
    # Red, green and blue of the original's test images, within what a copy in JPEG loses.
    means = cifar.test.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=3e-4)
