"""Streams that can't be used: what is wrong is named, with the way out."""

import json
import re
import tarfile
import warnings

import pytest
import torch

from apical.data import DataError
from apical.data.options import DataOptions
from apical.data.streaming.opening import stream
from apical.data.streaming.stream import Reading
from apical.training import RunFolder, TrainConfig, train
from data.pictures import emptied, relabel, unnamed
from data.streaming.made_up import LAYOUTS, made, shard, write
from processes import BoomError, Forked, as_torchrun_starts, boom_at, free_port

SAME = [(6, 5)]
SPLITS = {"train": made(20, 3, SAME), "test": made(6, 3, SAME, first=20)}


def refused(*words, place, tmp_path, **options):
    """Opening or reading it fails, with a message that has all the words."""

    def use():
        for split in stream(str(place), cache=tmp_path / "cache", **options).splits.values():
            list(split.in_order(4))
            list(split.batches(4, 0, 0))

    with pytest.raises(DataError) as caught:
        use()
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixed_sizes_without_a_rule(tmp_path, layout):
    splits = {**SPLITS, "train": made(20, 3, [(6, 5), (6, 5), (6, 5), (8, 9)])}
    place = write(tmp_path / "set", layout, splits)
    refused("split 'train'", "9 x 8 pixels among images of 5 x 6", "image_size=", place=place, tmp_path=tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_that_cannot_be_decoded(tmp_path, layout):
    bad = dict.fromkeys((3, 11, 12, 17))
    images = [
        (one[: len(one) // 2], label) if i in bad else (one, label) for i, (one, label) in enumerate(SPLITS["train"])
    ]
    images[12] = (b"", images[12][1])
    place = write(tmp_path / "set", layout, {**SPLITS, "train": images})
    named = {"folders": "train_0000", "tar": "made-up-train-00000", "parquet": "of-00002.parquet', row"}[layout]
    refused(named, "image can't be decoded", "skip_corrupt", place=place, tmp_path=tmp_path)
    found = stream(str(place), reading=Reading(workers=2, skip_corrupt=True), cache=tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"4 images that can't be decoded are left out: .*and 1 more") as told:
        batches = list(found.train.batches(6, 0, 0))
    assert named in str(told[0].message)
    assert sum(len(y) for _, y in batches) == 16
    assert len(found.train.skipped) == 4
    # They are told of once; whoever looks at the first few gets as many.
    assert len(found.train.first(10)[1]) == 10
    assert sum(len(y) for _, y in found.train.in_order(6)) == 16


def test_nothing_in_a_batch_that_can_be_decoded(tmp_path):
    images = [(one if i == 0 else b"no image", label) for i, (one, label) in enumerate(SPLITS["train"])]
    place = write(tmp_path / "set", "tar", {**SPLITS, "train": images})
    words = ("none of the 4 images of a batch", "UnidentifiedImageError")
    refused(*words, place=place, tmp_path=tmp_path, reading=Reading(skip_corrupt=True), image_size=8)


@pytest.mark.parametrize("layout", ["tar", "parquet"])
def test_labels_out_of_range(tmp_path, layout):
    place = write(tmp_path / "set", layout, {**SPLITS, "test": [(one, 2) for one, _ in SPLITS["test"]]})
    if layout == "tar":
        shard(
            place / "made-up-test-000000.tar", [(one, 7 if i == 4 else 0) for i, (one, _) in enumerate(SPLITS["test"])]
        )
        refused("made-up-test-000000.tar", "'000004.png'", "label 7", "3 classes", place=place, tmp_path=tmp_path)
    else:
        relabel(place / "test-00001-of-00002.parquet", [0, 1, -1])
        words = ("'test-00001-of-00002.parquet', row 2", "label -1", "3 classes", "test_split=")
        refused(*words, place=place, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (-1, ["label -1 is none of the 3 classes"]),
        (10**12, ["000000000000", "at most 1,000,000"]),
        (10**30, ["000000000000", "at most 1,000,000"]),
    ],
)
def test_training_labels_in_shards_that_are_no_classes(tmp_path, label, words):
    images = [(one, label if i == 4 else own) for i, (one, own) in enumerate(SPLITS["train"])]
    place = write(tmp_path / "set", "tar", {**SPLITS, "train": images})
    refused("made-up-train-000000.tar", "000004.", *words, place=place, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (-1, ["row 1", "label -1 is none of the 3 classes"]),
        (10**12, ["row 1", "label 1000000000000", "at most 1,000,000"]),
        (2**63 + 5, ["'label'", "can't be numbers of classes"]),
    ],
)
def test_training_labels_in_a_table_that_are_no_classes(tmp_path, label, words):
    place = write(tmp_path / "set", "parquet", SPLITS)
    unnamed(place / "train-00000-of-00002.parquet", [0, label, 2, 1, 0, 1, 2, 0, 1, 2])
    unnamed(place / "train-00001-of-00002.parquet", [0, 1, 2, 1, 0, 1, 2, 0, 1, 2])
    refused("train-00000-of-00002.parquet", *words, place=place, tmp_path=tmp_path)


def test_classes_of_the_same_numbers_and_other_names(tmp_path):
    place = write(tmp_path / "set", "parquet", SPLITS)
    write(place, "parquet", {"test": SPLITS["test"]}, classes=4)
    refused("split 'test'", "other classes than in the training split", place=place, tmp_path=tmp_path)


@pytest.mark.parametrize("cut", [0, 512 * 3 + 20, 512 * 4, -9_300])
def test_a_shard_that_ends_early(tmp_path, cut):
    place = write(tmp_path / "set", "tar", SPLITS)
    path = place / "made-up-train-000001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with tarfile.open(place / "made-up-train-000000.tar") as tar:
        assert len(tar.getnames()) == 14
    words = ("split 'train'", "'made-up-train-000001.tar'", "ends early", "whole samples", "fetch or write it again")
    refused(*words, place=place, tmp_path=tmp_path)


def test_a_shard_that_ends_early_after_it_was_looked_through(tmp_path):
    place = write(tmp_path / "set", "tar", SPLITS)
    found = stream(str(place), cache=tmp_path / "cache")
    path = place / "made-up-train-000001.tar"
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(DataError, match=r"split 'train': shard 'made-up-train-000001\.tar' ends early"):
        list(found.train.batches(4, 0, 0))


def test_a_parquet_file_that_ends_early(tmp_path):
    place = write(tmp_path / "set", "parquet", SPLITS)
    path = place / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    refused(
        "split 'train'", "'train-00001-of-00002.parquet' ends early", "write it again", place=place, tmp_path=tmp_path
    )


@pytest.mark.parametrize(("labels", "word"), [(False, "label"), (True, "'many'")])
def test_samples_without_a_label(tmp_path, labels, word):
    place = write(tmp_path / "set", "tar", SPLITS)
    shard(place / "made-up-train-000000.tar", [(SPLITS["train"][0][0], "many")], labels=labels)
    refused("'made-up-train-000000.tar'", word, place=place, tmp_path=tmp_path)


def test_class_folders_that_are_empty_or_strange(tmp_path):
    place = write(tmp_path / "set", "folders", SPLITS)
    (place / "test" / "n0009").mkdir()
    refused("split 'test'", "'n0009' is none of the 3", place=place, tmp_path=tmp_path)
    (place / "train" / "n0009").mkdir()
    refused("split 'train'", "'n0009' has no images", "delete it", place=place, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("made_of", "words"),
    [
        ((), ["no train split", "train/ and val/"]),
        (("train.tar.gz",), ["compressed", ".tar"]),
        (("x.tar",), ["no train split"]),
    ],
)
def test_folders_with_nothing_to_stream(tmp_path, made_of, words):
    (tmp_path / "set").mkdir()
    for name in made_of:
        (tmp_path / "set" / name).write_bytes(b"")
    refused(*words, place=tmp_path / "set", tmp_path=tmp_path)


def test_a_split_that_is_not_there_or_empty(tmp_path):
    from apical.data.columns import Choice

    place = write(tmp_path / "set", "tar", {"train": SPLITS["train"]})
    refused("no test split", place=place, tmp_path=tmp_path)
    shard(place / "made-up-val-000000.tar", [])
    refused("split 'val' is empty", "test on", place=place, tmp_path=tmp_path)
    shard(place / "made-up-test-000000.tar", SPLITS["test"])
    val = Choice(validation_split="val")
    refused("split 'val' is empty", "choose settings by", place=place, tmp_path=tmp_path, choice=val)
    place = write(tmp_path / "folders", "folders", SPLITS)
    (place / "val").mkdir()
    refused("split 'val'", "has no folders", place=place, tmp_path=tmp_path, choice=val)
    place = write(tmp_path / "parquet", "parquet", SPLITS)
    emptied(place / "test-00000-of-00002.parquet", place / "val-00000-of-00001.parquet")
    refused("split 'val' is empty", "choose settings by", place=place, tmp_path=tmp_path, choice=val)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"image_size": 8}, "image_size is for streamed data"),
        ({"skip_corrupt": True, "workers": 2}, "workers, skip_corrupt is for streamed data"),
        ({"stream": True, "image_size": 0}, "image_size must be at least 1"),
        ({"stream": True, "normalize": "own"}, "normalize='own'"),
    ],
)
def test_options_that_streams_cannot_have_or_others(options, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        TrainConfig(**options)
    with pytest.raises(DataError, match="digits are in memory"):
        DataOptions(stream=True).applied("digits")


def test_images_all_at_once_are_refused(tmp_path):
    train_split = stream(str(write(tmp_path / "set", "tar", SPLITS)), cache=tmp_path / "cache").train
    with pytest.raises(DataError, match=r"split 'train': images are streamed.*without stream"):
        _ = train_split.images
    with pytest.raises(DataError, match="one order at a time"):
        train_split.batches(4, [0, 1], 0)


def test_a_run_leaves_corrupt_images_out_where_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    images = [(one[:40], label) if i == 5 else (one, label) for i, (one, label) in enumerate(SPLITS["train"])]
    place = write(tmp_path / "set", "folders", {**SPLITS, "train": images})
    config = TrainConfig(data=str(place), network="90-3", epochs=2, batch=6, stream=True, align_every=0)
    with pytest.raises(DataError, match=r"n000\d/train_000005\.PNG'.*can't be decoded.*skip_corrupt"):
        train(config, tmp_path / "refused")
    config = TrainConfig(**{**config.asdict(), "skip_corrupt": True})
    with pytest.warns(UserWarning, match=r"1 image that can't be decoded is left out: .*train_000005"):
        result = train(config, tmp_path / "run")
    assert result["steps"] == 8
    assert torch.tensor(result["test_loss"]).isfinite()
    assert result["skipped"] == RunFolder(tmp_path / "run").result["skipped"] == 1
    (line,) = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    assert "train_000005" in json.loads(line)["image"]
    with pytest.warns(UserWarning, match="left out"):
        train(config, tmp_path / "run", overwrite=True)
    assert len((tmp_path / "run" / "skipped.jsonl").read_text().splitlines()) == 1
    (tmp_path / "run" / "skipped.jsonl").write_text("no line of its\n")
    with pytest.raises(ValueError, match=r"skipped.jsonl: is damaged"):
        RunFolder(tmp_path / "run").skipped.read()


def test_images_left_out_are_counted_once_however_often_a_run_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    cut = {split: [(one[:40], label) if i in (2, 5) else (one, label) for i, (one, label) in enumerate(images)]
           for split, images in SPLITS.items()}  # fmt: skip
    place = write(tmp_path / "set", "tar", cut)
    config = TrainConfig(
        data=str(place), network="90-3", epochs=2, batch=4, stream=True, skip_corrupt=True, validation=0.2, align_every=0,
        checkpoint_every=1,
    )  # fmt: skip
    warnings.simplefilter("ignore")  # What they say is tested above.
    for again, limit in enumerate((3, 6)):
        with pytest.raises(BoomError):
            train(config, tmp_path / "run", resume=bool(again), watcher=boom_at(limit))
    assert train(config, tmp_path / "run", resume=True)["skipped"] == 4


def _on_a_rank(rank, port, config, folder):
    as_torchrun_starts(rank, port)
    warnings.simplefilter("ignore")
    train(config, folder)


def test_two_processes_count_what_each_has_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    images = [(one[:40], label) if i in (2, 5, 9) else (one, label) for i, (one, label) in enumerate(SPLITS["train"])]
    place, port = write(tmp_path / "set", "parquet", {**SPLITS, "train": images}), free_port()
    config = TrainConfig(
        data=str(place), network="90-3", epochs=2, batch=10, stream=True, skip_corrupt=True, align_every=0, accelerator="cpu"
    )  # fmt: skip
    ranks = [Forked(_on_a_rank, rank, port, config, tmp_path / "run") for rank in range(2)]
    for rank in ranks:
        _, err = rank.communicate(timeout=200)
        assert rank.returncode == 0, err
    assert RunFolder(tmp_path / "run").result["skipped"] == 3
