"""Streams of every layout: what is in them, in which order, for how many processes and threads."""

import itertools
import threading

import datasets
import fsspec
import huggingface_hub
import numpy as np
import pytest
import torch

from apical import data
from apical.comparison.choice import obstacle
from apical.data import DataError
from apical.data.options import DataOptions
from apical.data.source import Hub
from apical.data.streaming.opening import stream
from apical.data.streaming.stream import Reading
from apical.training import TrainConfig, train
from apical.training.checkpoint import load
from data.pictures import write as write_hub
from data.streaming.made_up import LAYOUTS, made, numbers, write

SAME = [(6, 5)]
SPLITS = {"train": made(40, 3, SAME), "test": made(11, 3, SAME, first=40)}


@pytest.fixture(params=LAYOUTS)
def place(request, tmp_path):
    return write(tmp_path / "set", request.param, SPLITS)


def opened(place, tmp_path, buffer=10, workers=2, **options):
    return stream(str(place), reading=Reading(buffer, workers), cache=tmp_path / "cache", **options)


def epoch(split, seed=0, number=0, **options):
    return [(numbers(x), y.tolist()) for x, y in split.batches(7, seed, number, **options)]


def test_a_stream_holds_what_loading_all_holds(place, tmp_path):
    found, threads = opened(place, tmp_path), threading.active_count()
    labels = {number: label for number, (_, label) in enumerate([*SPLITS["train"], *SPLITS["test"]])}
    assert (len(found.train), len(found.test), found.shape, found.classes) == (40, 11, (3, 6, 5), 3)
    for split, own in ((found.train, range(40)), (found.test, range(40, 51))):
        x, y = (torch.cat(one) for one in zip(*split.in_order(4), strict=True))
        assert sorted(numbers(x)) == list(own)
        assert y.tolist() == [labels[one] for one in numbers(x)] == split.labels.tolist()
        images, first = split.pictures(6)
        assert torch.equal(images.float() / 255, x[:6])
        assert torch.equal(first, y[:6])
        for given, index in ((split.first(5), range(5)), (split.batch(torch.tensor([3, 1, 3])), [3, 1, 3])):
            assert torch.equal(given[0], x[list(index)])
            assert torch.equal(given[1], y[list(index)])
    assert threading.active_count() == threads


def test_pixels_are_those_of_loading_all(tmp_path):
    place = write(tmp_path / "set", "parquet", SPLITS)
    whole, found = data.load(str(place), cache=tmp_path / "cache"), opened(place, tmp_path)
    assert found.class_names == whole.class_names
    for one, other in ((whole.train, found.train), (whole.test, found.test)):
        assert torch.equal(one.first(40)[0], other.first(40)[0])
        assert torch.equal(one.labels, other.labels)


def test_every_sample_comes_once_an_epoch_in_an_order_of_its_own(place, tmp_path):
    train = opened(place, tmp_path).train
    first, again, second, other = epoch(train), epoch(train), epoch(train, number=1), epoch(train, seed=1)
    for one in (first, second, other):
        assert sorted(itertools.chain(*(x for x, _ in one))) == list(range(40))
        assert [len(x) for x, _ in one] == [7, 7, 7, 7, 7, 5]
    assert first == again
    assert len({str(first), str(second), str(other)}) == 3


def test_an_epoch_goes_on_at_the_very_batch(place, tmp_path):
    train = opened(place, tmp_path).train
    whole = epoch(train)
    assert all(epoch(train, start=start) == whole[start:] for start in range(7))


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_share_each_batch_whatever_the_threads(place, tmp_path, workers):
    whole, train = epoch(opened(place, tmp_path).train), opened(place, tmp_path, workers=workers).train
    for count in (1, 2, 3):
        parts = [epoch(train, part=(rank, count)) for rank in range(count)]
        joined = [
            tuple(list(itertools.chain(*ones)) for ones in zip(*batch, strict=True))
            for batch in zip(*parts, strict=True)
        ]
        assert joined == whole
        assert max(len(x) for part in parts for x, _ in part) - min(len(part[0][0]) for part in parts) <= 1


def test_a_validation_split_is_held_out_of_a_stream(place, tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    found = DataOptions(stream=True, validation=0.25, shuffle_buffer=5).applied(str(place))
    own = {role: list(itertools.chain(*(x for x, _ in epoch(split)))) for role, split in found.splits.items()}
    assert {role: len(one) for role, one in own.items()} == {"train": 30, "test": 11, "validation": 10}
    assert sorted(own["train"] + own["validation"]) == list(range(40))
    assert found.calls("validation").startswith("10 of 40 images of split 'train'")


def test_a_set_of_its_own_to_choose_by(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    place = write(tmp_path / "set", "tar", {**SPLITS, "val": made(5, 3, SAME, first=60)})
    found = DataOptions(stream=True, validation="val").applied(str(place))
    assert found.tested == {"test": "split 'test'", "validation": "split 'val'"}
    assert sorted(numbers(found.validation.first(9)[0])) == [60, 61, 62, 63, 64]


def test_parquet_on_the_hub_is_read_in_place(tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    place = write(tmp_path / "set", "parquet", SPLITS)
    for file in place.iterdir():
        memory.pipe(f"datasets/somebody/pictures@{'a' * 40}/data/{file.name}", file.read_bytes())
    monkeypatch.setattr(Hub, "fingerprint", lambda self: "a" * 40)
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: memory)
    found = stream("somebody/pictures", reading=Reading(10), cache=tmp_path / "cache")
    assert found.class_names == ("0", "1", "2")
    assert epoch(found.train) == epoch(opened(place, tmp_path).train)
    memory.rm("datasets/somebody", recursive=True)
    with pytest.raises(DataError, match="hf download --repo-type dataset somebody/pictures"):
        stream("somebody/pictures")


def test_cifar_100s_columns(tmp_path):
    features = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(num_classes=100)}
    features["coarse_label"] = datasets.ClassLabel(num_classes=20)
    for split in ("train", "test"):
        images, labels = zip(*made(9, 100, SAME), strict=True)
        columns = {"image": "img", "label": "fine_label", "features": features, "coarse_label": [0] * 9}
        write_hub(tmp_path / "set", split, images, labels, **columns)
    found = opened(tmp_path / "set", tmp_path)
    assert found.classes == 100
    assert found.train.labels.tolist() == [label for _, label in made(9, 100, SAME)]


def test_a_random_part_is_cut_once_only(tmp_path):
    place = write(tmp_path / "set", "folders", {"train": made(9, 3, SAME, "jpeg"), "val": SPLITS["test"]}, kind="jpeg")
    options = DataOptions(stream=True, image_size=4, augment="resized-crop")
    found = options.applied(str(place))
    assert options.applied(found) is found
    (x, _), (again, _) = (next(one.batches(9, 0, 0)) for one in (found.train, found.train.of))
    assert torch.equal(x, again)
    assert not torch.equal(
        x, next(DataOptions(stream=True, image_size=4).applied(str(place)).train.batches(9, 0, 0))[0]
    )


def test_images_of_mixed_sizes_come_to_have_one(tmp_path):
    sizes = [(40, 30), (24, 60), (33, 33)]
    splits = {"train": made(30, 3, sizes, "jpeg"), "val": made(6, 3, sizes, "jpeg", first=30)}
    place = write(tmp_path / "set", "folders", splits, kind="jpeg")
    found = opened(place, tmp_path, image_size=14)
    assert found.shape == (3, 14, 14)
    assert found.calls("test") == "split 'val'"
    cut = opened(place, tmp_path, image_size=14, part=data.augment.ResizedCrop()).train
    whole = list(cut.batches(8, 0, 0))
    plain = list(found.train.batches(8, 0, 0))
    assert all(torch.equal(y, other) for (_, y), (_, other) in zip(whole, plain, strict=True))
    assert not any(torch.equal(x, other) for (x, _), (other, _) in zip(whole, plain, strict=True))
    # Random parts are those that the seed, the epoch and the batch say, whoever takes them.
    halves = [list(cut.batches(8, 0, 0, start=1, part=(rank, 2))) for rank in range(2)]
    for (x, _), (one, _), (two, _) in zip(whole[1:], *halves, strict=True):
        assert torch.equal(x, torch.cat([one, two]))
    # Tests look at the middle.
    assert torch.equal(cut.first(9)[0], found.train.first(9)[0])


def test_the_middle_of_an_image_is_what_pillow_gives(tmp_path):
    from PIL import Image

    from apical.data.streaming.pixels import Resize

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8))
    found = Resize(224, (0, 0))(image, None)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(image)[16:240, 38:262])


def test_a_block_is_read_once_and_held_no_longer_than_its_images_are_waited_for(tmp_path):
    place = write(tmp_path / "set", "parquet", {"train": made(210, 3, SAME), "test": SPLITS["test"]})
    train, read = opened(place, tmp_path, buffer=14).train, []
    own = train.source.block
    train.source.block = lambda number: read.append(number) or own(number)
    batches = train.batches(7, 0, 0)
    next(batches)
    assert len(read) <= 2 + (14 + 4 * 7) // 7 + 1
    assert len(list(batches)) == 29
    assert sorted(read) == list(range(30))
    read.clear()
    list(train.batches(7, 0, 0, start=29))
    assert 1 <= len(read) <= 7


def test_what_tar_shards_hold_is_looked_for_once(tmp_path, monkeypatch):
    from apical.data.streaming import tar

    place = write(tmp_path / "set", "tar", SPLITS)
    whole = epoch(opened(place, tmp_path).train)
    (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.stat().st_size > 40 * 4 * 8)
    monkeypatch.setattr(tar.tarfile, "open", None)
    assert epoch(opened(place, tmp_path).train) == whole
    monkeypatch.undo()
    kept.write_bytes(kept.read_bytes()[:-50])
    assert epoch(opened(place, tmp_path).train) == whole


def test_a_run_on_a_stream_is_resumed_at_the_very_sample(tmp_path, monkeypatch):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path / "cache"))
    place = write(tmp_path / "set", "tar", SPLITS)
    config = TrainConfig(
        data=str(place), network="192-5-3", rule="fa", epochs=3, batch=6, stream=True, shuffle_buffer=9, image_size=8,
        augment="flip+resized-crop+cutout:size=2", normalize="imagenet", validation=0.2, checkpoint_every=2, align_every=0,
    )  # fmt: skip
    whole = train(config, tmp_path / "whole")

    def stop(step, steps, newest):
        if step in (3, 9):
            raise KeyboardInterrupt

    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", watcher=stop, resume=resume)
    assert train(config, tmp_path / "stopped", resume=True)["predictions"] == whole["predictions"]
    states = [load(tmp_path / run / "checkpoint" / "last.ckpt")["model"] for run in ("whole", "stopped")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_seeds_are_not_trained_side_by_side_on_a_stream(tmp_path):
    found = opened(write(tmp_path / "set", "tar", SPLITS), tmp_path)
    assert "one order at a time" in obstacle(TrainConfig(network="90-3"), 2, found)
