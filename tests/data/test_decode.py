"""Every image exactly as it was encoded."""

import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from apical import data
from apical.data import DataError
from data.pictures import COLOUR, GREY, assert_holds, in_memory_splits, pictures, png, png_of, write


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


def test_the_test_split_can_be_chosen(folder, cache):
    write(folder, "validation", pictures(2, seed=9), [1, 1])
    for _ in range(2):
        with pytest.warns(UserWarning, match="split 'validation' not used"):
            assert len(data.load(str(folder), cache=cache).test) == 3
        assert_holds(data.load(str(folder), cache=cache, test_split="validation").test, pictures(2, seed=9), [1, 1])


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


def test_progress_bars_are_left_as_they_were(folder, cache, capfd):
    assert not datasets.are_progress_bars_disabled()
    data.load(str(folder), cache=cache)
    assert not datasets.are_progress_bars_disabled()
    captured = capfd.readouterr()
    assert "split" not in captured.err.replace("Creating parquet", "")
    assert captured.out == ""
