"""The order of a stream: every sample once, mixed as far as the buffer reaches."""

import numpy as np
import pytest

from apical.data.streaming.order import shuffled


@pytest.mark.parametrize("blocks", [[], [1], [0, 3], [7] * 9, [1] * 40, [5, 0, 11, 1, 2]], ids=str)
@pytest.mark.parametrize("buffer", [1, 2, 10, 63, 1000])
def test_every_sample_comes_once(blocks, buffer):
    order = shuffled(blocks, buffer, seed=2, epoch=1)
    assert sorted(order.tolist()) == list(range(sum(blocks)))
    np.testing.assert_array_equal(order, shuffled(blocks, buffer, seed=2, epoch=1))


def test_seed_and_epoch_decide():
    one = shuffled([10] * 20, 30, 0, 0).tolist()
    assert one != shuffled([10] * 20, 30, 1, 0).tolist()
    assert one != shuffled([10] * 20, 30, 0, 1).tolist()


@pytest.mark.parametrize("buffer", [1, 50])
def test_blocks_are_read_one_after_the_other(buffer):
    order = shuffled([10] * 100, buffer, 0, 0)
    first = [np.flatnonzero(order // 10 == block).min() for block in range(100)]
    # A block is opened no later than where it would come without a buffer, and no sooner than the buffer has room for.
    came = np.sort(first)
    assert (came >= np.arange(100) * 10 - buffer).all()
    assert (np.array(first).argsort() != np.arange(100)).any()


def test_a_buffer_mixes_neighbours():
    order = shuffled([1000], 200, 0, 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) > 0.5
    assert not (np.diff(order) == 1).sum() > 20
    assert abs(np.corrcoef(shuffled([1000], 1000, 0, 0), np.arange(1000))[0, 1]) < 0.1
