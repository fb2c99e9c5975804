"""Splits and their batches: every sample once, in an order that the seed alone decides."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apical import data
from apical.data import DataError, ImageData, Split, held_out
from data.pictures import assert_holds, pictures, refused, write


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


ROWS = Split(torch.arange(40, dtype=torch.uint8).reshape(10, 1, 2, 2), torch.arange(10))


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_the_order_of_a_splits_batches_depends_on_seed_and_epoch_alone(start):
    # Results are published from this order.
    order = torch.randperm(10, generator=torch.Generator().manual_seed((5 + 1) * 1_000_003 + 7))
    found = list(ROWS.batches(4, 5, 7, start))
    assert [y.tolist() for _, y in found] == [y.tolist() for y in order.split(4)][start:]
    for x, y in found:
        assert torch.equal(x, ROWS.batch(y)[0])
    assert [y.tolist() for _, y in ROWS.batches(4, 5, 8)] != [y.tolist() for y in order.split(4)]


def test_processes_share_a_batch():
    parts = [list(ROWS.batches(4, 5, 7, part=(number, 3))) for number in range(3)]
    for (_, whole), *shares in zip(ROWS.batches(4, 5, 7), *parts, strict=True):
        assert torch.equal(torch.cat([y for _, y in shares]), whole)
        assert max(len(y) for _, y in shares) - min(len(y) for _, y in shares) <= 1


def test_several_seeds_have_each_its_own_order():
    for (x, y), *alone in zip(ROWS.batches(4, [3, 1], 0), ROWS.batches(4, 3, 0), ROWS.batches(4, 1, 0), strict=True):
        assert torch.equal(x, torch.stack([own for own, _ in alone]))
        assert torch.equal(y, torch.stack([own for _, own in alone]))


def test_samples_in_their_own_order_and_the_first_of_them():
    assert [y.tolist() for _, y in ROWS.in_order(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert torch.equal(torch.cat([x for x, _ in ROWS.in_order(3)]), ROWS.batch(torch.arange(10))[0])
    assert ROWS.first(3)[1].tolist() == [0, 1, 2]
    assert len(ROWS.first(99)[1]) == 10


@pytest.mark.parametrize(("amount", "count"), [(0.1, 144), (100, 100), (0.5, 721), (1441, 1441)])
def test_what_is_held_out_is_not_trained_on(amount, count):
    whole, parted = data.load(), data.load(validation=amount, validation_seed=3)
    assert (len(parted.validation), len(parted.train)) == (count, 1442 - count)
    taken = torch.cat([parted.train.index, parted.validation.index])
    assert taken.sort().values.tolist() == list(range(1442))
    assert parted.test.images is not whole.train.images
    assert torch.equal(parted.test.images, whole.test.images)
    x, y = parted.validation.first(count)
    assert torch.equal(x, whole.train.batch(parted.validation.index)[0])
    assert torch.equal(y, whole.train.labels[parted.validation.index])


def test_the_seed_decides_what_is_held_out():
    one, same, other = (data.load(validation=0.2, validation_seed=seed).validation.index for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_part_gives_the_batches_of_a_split_of_its_own():
    part = data.load(validation=100).train
    alone = Split(part.images, part.labels)
    assert alone.shape == part.shape
    for (x, y), (x1, y1) in zip(
        part.batches(200, [1, 2], epoch=3, start=2, part=(1, 2)),
        alone.batches(200, [1, 2], epoch=3, start=2, part=(1, 2)),
        strict=True,
    ):
        assert torch.equal(x, x1)
        assert torch.equal(y, y1)
    assert torch.equal(part.pictures(3)[0], alone.pictures(3)[0])


@pytest.mark.parametrize("amount", [0.0001, 0, 0.0, 1.5, -3, float("nan"), 1442, 5000])
def test_a_validation_split_with_nothing_in_it_or_all_is_refused(amount):
    with pytest.raises(ValueError, match="validation"):
        data.load(validation=amount)


def test_an_empty_validation_split_is_refused_by_name():
    split, none = (Split(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)) for n in (4, 0))
    with pytest.raises(DataError, match=r"mine: the validation split is empty.*'val'"):
        ImageData("mine", split, split, 2, ("a", "b"), validation=none, called={"validation": "val"})


def test_the_sets_own_validation_split(folder, cache):
    write(folder, "validation", pictures(2, seed=5), [2, 0])
    found = data.load(str(folder), cache=cache, validation="validation")
    assert_holds(found.validation, pictures(2, seed=5), [2, 0])
    assert found.tested == {"test": "split 'test'", "validation": "split 'validation'"}
    with pytest.warns(UserWarning, match="split 'validation'.*not used"):
        assert data.load(str(folder), cache=cache).validation is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", ["validation split", "'nothing'", "'train', 'test'", "validation=0.1"]),
        ("test", ["validation='test'", "tests on", "validation=0.1"]),
        ("train", ["validation='train'", "trains on"]),
    ],
)
def test_a_validation_split_that_cannot_be_is_refused(folder, cache, name, words):
    refused(*words, name=folder, cache=cache, validation=name)


def test_the_digits_have_no_split_of_that_name():
    with pytest.raises(DataError, match=r"'val'.*validation=0\.1"):
        data.load(validation="val")


def test_what_is_held_out_of_a_named_split_says_so(folder, cache):
    found = held_out(data.load(str(folder), cache=cache), 2, seed=7)
    assert found.calls("validation") == "2 of 6 images of split 'train', held out by seed 7"
