"""The weight mirror's mean update, fixed points and loss against closed forms."""

from __future__ import annotations

import pytest


def test_mirror_expectation_and_fixed_points(theory):
    for name, found in theory["wm expectation"].numbers.items():
        assert found == pytest.approx([1, 1], abs=0.02), name
    points = theory["wm fixed point"].numbers
    assert points["decay times rate"] == pytest.approx([0.99, 0.99], abs=0.05)
    assert points["decay as printed"] == pytest.approx([0.099, 0.099], abs=0.01)
    assert max(theory["wm loss"].numbers["deviation"]) < 1e-15
