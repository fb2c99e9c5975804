"""Real images for the paper's training."""

import pytest

from apical import data


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")
