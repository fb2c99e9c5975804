"""Claims and numbers of figure 3."""

from __future__ import annotations

from apical.papers import Curve, Published, Record, find
from apical.papers.lillicrap2016.fig3 import FIG3_SPARSE, FIG3A, FIG3B


def record(errors: list[float], angle: list[float] | None = None) -> Record:
    x = [float(i) for i in range(len(errors))]
    curves = {"test error": Curve(x, [errors])}
    return Record(curves=curves if angle is None else {**curves, "angle": Curve(x, [angle])})


def test_what_figure_3_shows_is_judged_by_its_curves():
    good = {
        "shallow": record([90, 20, 9, 7]),
        "bp": record([90, 7, 3, 2.4]),
        "fa": record([90, 6, 3, 2.1], [90, 50, 45, 44]),
    }
    shown = FIG3A.outcome(good)
    assert [claim.holds for claim in shown.claims] == [True] * 5
    assert {row.label: row.agrees for row in shown.rows if row.published} == {
        "test error, shallow": True,
        "test error, bp": True,
        "test error, fa": True,
    }
    assert [panel.title for panel in shown.panels] == ["a", "b"]
    bad = {**good, "fa": record([90, 40, 20, 8], [90, 88, 40, 70])}
    assert [claim.holds for claim in FIG3A.outcome(bad).claims] == [False] * 5
    near = {**good, "fa": record([90, 6, 3, 2.7], [90, 50, 45, 44])}
    assert [claim.holds for claim in FIG3A.outcome(near).claims][:2] == [False, True]
    sparse = FIG3_SPARSE.outcome({"fa": near["fa"], "bp, 10 eta": near["bp"]})
    assert [(claim.text[:15], claim.holds) for claim in sparse.claims][:2] == [
        ("FA ends at BP's", False),
        ("FA matches BP's", True),
    ]
    nearer = FIG3_SPARSE.outcome({"fa": record([90, 6, 3, 2.49]), "bp, 10 eta": near["bp"]})
    assert nearer.claims[0].holds
    assert not FIG3A.outcome({}).rows
    assert not FIG3B.outcome({"fa": record([90, 80])}).panels
    # BP ends at 2.4; FA gets there two thirds of the way between its last measurements.
    assert shown.claims[2].evidence == "2.40 % after 2.67 examples against 3 (bp)"
    higher = FIG3A.outcome({"bp, 10 eta": good["bp"]})
    assert [(row.label, row.agrees) for row in higher.rows] == [("test error, bp, 10 eta", True)]


def test_descriptions_have_the_papers_numbers():
    assert FIG3A.published == {"bp": Published(2.4), "fa": Published(2.1), "shallow": Published(7.2, tag="T")}
    assert (FIG3A.hidden, FIG3A.rate, FIG3_SPARSE.connected) == (1000, 1e-3, 0.5)
    assert FIG3_SPARSE.published["fa"].value == 2.4
    assert FIG3A.conditions == ("shallow", "bp", "fa", "bp, 10 eta", "fa, w = 0.3", "bp, 10 eta, w = 0.3")
    assert (FIG3A.weights, FIG3A.epochs, FIG3A.seeds) == (0.2, 60, 5)
    assert (FIG3B.conditions, FIG3_SPARSE.conditions) == (("fa",), ("fa", "bp, 10 eta"))
    assert FIG3B.runs == FIG3A.runs != FIG3_SPARSE.runs
    for one in (FIG3A, FIG3B, FIG3_SPARSE):
        assert find(one.name) is one
