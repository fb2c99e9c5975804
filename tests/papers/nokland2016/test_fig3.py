"""How separation in the plane is measured."""

import numpy as np
import pytest

from apical.papers.nokland2016.fig3 import neighbour_error


def test_nearest_neighbours_of_another_class():
    points = np.array([[0.0, 0], [1, 0], [10, 0], [11, 0], [12.5, 0]])
    assert neighbour_error(points, np.array([0, 0, 1, 1, 2])) == pytest.approx(20)
