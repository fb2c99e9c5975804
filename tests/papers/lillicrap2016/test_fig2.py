"""Claims of figure 2."""

import numpy as np
import pytest
import torch

from apical.papers import Curve, Record
from apical.papers.lillicrap2016.fig2 import FIG2A, FIG2B, PART, POSITIVE, QUICKEST, products
from apical.papers.lillicrap2016.linear_function import ERROR, TO_BP


def curve(*rows):
    return Curve([0, 1000, 2000], rows)


def test_claims_of_learning_curves_can_fail():
    slow = Record(curves={ERROR: curve([1.0, 0.9, 0.8], [1.0, 0.9, 0.7])})
    quick = Record(curves={ERROR: curve([1.0, 1e-5, 1e-9], [1.0, 1e-5, 1e-8])})
    held = {c.text: c.holds for c in FIG2A.outcome({"bp": quick, "fa": quick, "shallow": slow}).claims}
    assert all(held.values())
    own = {c.text: c.holds for c in FIG2A.outcome({QUICKEST: slow, "shallow": quick}).claims}
    assert list(own.values()) == [False, True]
    failed = [c.holds for c in FIG2A.outcome({"bp": slow, "fa": slow, "shallow": quick}).claims]
    assert not any(failed)


def test_claims_of_an_angle_can_fail():
    away = Record(curves={TO_BP: curve([90.0, 90.0, 90.0])})
    assert [c.holds for c in FIG2B.outcome({"fa": away}).claims] == [True, False, True]


def test_products_are_those_of_numpy_and_the_condition_can_fail():
    e, W, B = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((7, 3), (3, 5), (3, 5)))
    found = products(e, W, B)
    for place, (one, w, b) in enumerate(zip(e.numpy(), W.numpy(), B.numpy(), strict=True)):
        product = [a @ w @ b.T @ a for a in one]
        size = [np.linalg.norm(a @ w) * np.linalg.norm(a @ b) for a in one]
        assert found[POSITIVE][place] == pytest.approx(np.mean(product) / np.mean(size))
        assert found[PART][place] == pytest.approx(100 * np.mean(np.array(product) > 0))
    for last, holds in ((0.5, True), (-0.1, False)):
        curves = {TO_BP: curve([90.0, 40.0, 40.0]), POSITIVE: curve([-0.2, 0.4, last]), PART: curve([40.0, 90.0, 95.0])}
        assert FIG2B.outcome({"fa": Record(curves=curves)}).claims[-1].holds is holds
