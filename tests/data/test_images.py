"""Splits and their batches: every sample once, in an order that the seed alone decides."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apical import data
from apical.data import DataError, ImageData, Split


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
