"""BioTorch's table: conditions, settings, and claims that can fail."""

from apical.papers import find
from apical.papers.record import Curve, Record

TABLE = find("biotorch/cifar10")


def record(error):
    curves = {name: Curve([0, 1], [[90.0, error]]) for name in ("test error", "validation error", "train error")}
    return Record(curves=curves, numbers={"test error": [error]}, seeds=[0])


def outcome(**errors):
    return TABLE.outcome({f"resnet20, {rule}": record(error) for rule, error in errors.items()})


def test_settings_are_those_of_the_benchmark():
    bp, dfa = (TABLE.entries[f"resnet20, {rule}"].recipe for rule in ("bp", "dfa"))
    assert (bp.rate, dfa.rate, bp.momentum, bp.decay, bp.batch) == (0.1, 0.001, 0.9, 1e-4, 128)
    assert [round(bp.rate_at(epoch), 6) for epoch in (99, 100, 150, 200)] == [0.1, 0.01, 0.001, 0.0001]
    assert len(TABLE.conditions) == 14


def test_its_numbers_stand_beside_ours_and_claims_can_fail():
    good = outcome(bp=8.6, kp=8.8, wm=9.0, urfb=9.5, usf=10.0, fa=32.0, dfa=46.0)
    assert [row.published.value for row in good.rows if row.published] == [8.63, 10.05, 32.16, 45.94]
    assert all(row.agrees for row in good.rows if row.published)
    assert [one.text for one in good.claims if not one.holds] == []
    assert {one.kind for one in good.claims} == {"ours"}
    bad = outcome(bp=8.6, kp=9.2, wm=9.3, urfb=13.0, usf=11.0, fa=12.0, dfa=10.0)
    assert len(bad.claims) == 6
    assert [one.text for one in bad.claims if one.holds] == []
