"""The flow of the linear network against numerical derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from apical.papers.amit2019.linear_network import flow


def test_flow_of_the_linear_network_is_the_gradient_where_feedback_is_transposed():
    draw = np.random.default_rng(0)
    W = [draw.normal(size=shape) for shape in ((5, 3), (4, 5), (2, 4))]
    T = draw.normal(size=(2, 3))

    def loss(which, shift):
        moved = [w + shift if i == which else w for i, w in enumerate(W)]
        return ((T - moved[2] @ moved[1] @ moved[0]) ** 2).sum() / 2

    for which, d in enumerate(flow(W, None, T, 0.0)):
        bump = np.zeros_like(d)
        bump[1, 2] = 1e-6
        assert -(loss(which, bump) - loss(which, -bump)) / 2e-6 == pytest.approx(d[1, 2], rel=1e-6)
