"""Digits: all there, once, and without disk or network."""

import hashlib
import subprocess
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from apical import data
from apical.data import DataError


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
