"""The real data sets, where they lie beside the checkout."""

import time

import pytest
import torch

from apical import data
from data.pictures import CIFAR10, MNIST


def as_both_splits(parquet, folder):
    """A test split in a folder of links like the hub's own, also for training: several times faster than the whole."""
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.parquet").symlink_to(parquet)
    return str(folder)


@pytest.mark.skipif(not MNIST.is_dir(), reason="no local MNIST")
def test_test_images_of_mnist(tmp_path):
    (parquet,) = MNIST.rglob("test-*.parquet")
    mnist = data.load(as_both_splits(parquet, tmp_path / "set"), cache=tmp_path / "cache")
    assert (len(mnist.train), len(mnist.test)) == (10_000, 10_000)
    assert (mnist.shape, mnist.classes, mnist.class_names) == ((1, 28, 28), 10, tuple("0123456789"))
    assert mnist.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert float(mnist.test.images.double().mean() / 255) == pytest.approx(0.1325, abs=5e-5)


@pytest.mark.slow
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
    folder = as_both_splits(CIFAR10 / "test-00000-of-00001.parquet", tmp_path / "set")
    cifar = data.load(folder, cache=tmp_path / "cache")
    assert (len(cifar.train), len(cifar.test)) == (10_000, 10_000)
    assert (cifar.shape, cifar.classes, cifar.class_names[0]) == ((3, 32, 32), 10, "airplane")
    assert cifar.test.labels.bincount().tolist() == [1000] * 10
    # Red, green and blue of the original's test images, within what a copy in JPEG loses.
    means = cifar.test.images.double().mean((0, 2, 3)) / 255
    assert means.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=3e-4)
