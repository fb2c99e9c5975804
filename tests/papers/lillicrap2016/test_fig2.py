"""Claims of figure 2."""

from apical.papers import Curve, Record
from apical.papers.lillicrap2016.fig2 import FIG2A, FIG2B
from apical.papers.lillicrap2016.linear_function import ERROR, TO_BP


def curve(*rows):
    return Curve([0, 1000, 2000], rows)


def test_claims_of_learning_curves_can_fail():
    slow = Record(curves={ERROR: curve([1.0, 0.9, 0.8], [1.0, 0.9, 0.7])})
    quick = Record(curves={ERROR: curve([1.0, 1e-5, 1e-9], [1.0, 1e-5, 1e-8])})
    held = {c.text: c.holds for c in FIG2A.outcome({"bp": quick, "fa": quick, "shallow": slow}).claims}
    assert all(held.values())
    failed = [c.holds for c in FIG2A.outcome({"bp": slow, "fa": slow, "shallow": quick}).claims]
    assert not any(failed)


def test_claims_of_an_angle_can_fail():
    away = Record(curves={TO_BP: curve([90.0, 90.0, 90.0])})
    assert [c.holds for c in FIG2B.outcome({"fa": away}).claims] == [True, False, True]
