"""An answer to every bad input."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

from apical import data
from data.pictures import in_memory_splits, pictures, png, refused, relabel, write


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
