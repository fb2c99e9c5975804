"""A cache and a small data set for each test."""

import pytest

from data.pictures import pictures, write


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Six grey training images and three for testing."""
    write(tmp_path / "set", "train", pictures(6), [0, 1, 2, 0, 1, 2])
    write(tmp_path / "set", "test", pictures(3, seed=1), [2, 1, 0])
    return tmp_path / "set"
