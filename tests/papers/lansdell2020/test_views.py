"""The table's numbers, and the claims about losses, codes and reconstructions."""

from __future__ import annotations

import numpy as np

from apical.papers.lansdell2020 import views
from apical.papers.record import Curve, Record


def test_a_code_that_separates_is_told_from_one_that_does_not():
    rows = np.random.default_rng(0)
    labels = rows.integers(0, 10, 300)
    codes = np.stack([np.cos(labels), np.sin(labels)], 1)
    assert views.separation(codes + 0.01 * rows.normal(size=codes.shape), labels) == 100
    assert views.separation(rows.normal(size=codes.shape), labels) < 25


def test_published_numbers():
    assert {k: (p.value, p.spread) for k, p in views.TABLE.items() if k in ("bp", "fa, noise", "np")} == {
        "bp": (609.8, 14.4),
        "fa, noise": (768.2, 2.7),
        "np": (515.3, 4.1),
    }
    assert len(views.TABLE) == 11


def test_claims_compare_the_methods_of_the_table():
    def holds(**changed: float) -> dict[str, bool]:
        losses = {
            "bp": 600.0,
            "bp, tuned rate": 900.0,
            "fa": 780.0,
            "fa, noise": 781.0,
            "np": 510.0,
            "sg": 520.0,
            "adam": 530.0,
            "matched": 602.0,
            **changed,
        }
        records = {
            name: Record(
                curves={"test loss": Curve([0, 1], [[3000.0, loss]] * 2)},
                numbers={"minimum of test loss": [loss - 1, loss + 1]},
            )
            for name, loss in losses.items()
        }
        return {claim.text.partition(" (")[0]: claim.holds for claim in views.outcome(("curves",), records).claims}

    assert all(holds().values())
    assert {name for name, held in holds(sg=800.0).items() if not held} == {
        "FA performs poorly",
        "SG is better than BP",
    }
    assert {name for name, held in holds(**{"fa, noise": 770.0}).items() if not held} == {"noise does not help FA"}
    assert {name for name, held in holds(matched=640.0).items() if not held} == {"Matched is similar to BP"}
    assert {name for name, held in holds(adam=500.0).items() if not held} == {"NP is the best of all"}


def test_differences_within_two_standard_errors_are_undecided_and_so_is_all_by_one_seed():
    def judged(apart: float, seeds: int = 2) -> dict[str, bool | None]:
        losses = {"np": 600.0 - apart, "bp": 600.0, "matched": 600.0 + apart, "fa": 600.0 + apart, "dae": 600.0}
        numbers = {name: [loss - 1, loss + 1][:seeds] for name, loss in losses.items()}
        records = {
            name: Record(
                curves={"test loss": Curve([0], [[one] for one in own])}, numbers={"minimum of test loss": own}
            )
            for name, own in numbers.items()
        }
        return {claim.text.partition(" (")[0]: claim.holds for claim in views.outcome(("curves",), records).claims}

    better, similar = "NP is better than BP", "Matched is similar to BP"
    assert (judged(2.8)[better], judged(2.9)[better], judged(-2.9)[better]) == (None, True, False)
    assert (judged(2.8)[similar], judged(2.9)[similar]) == (True, False)
    assert set(judged(50.0, seeds=1).values()) == {None}
    assert judged(2.8)["NP is the best of all"] is judged(2.8)["FA performs poorly"] is None

    def separated(*rates: float) -> list[bool | None]:
        records = {
            name: Record(numbers={views.SEPARATION: [rate - 1, rate + 1]}, arrays={"codes": [[0, 0]], "labels": [0]})
            for name, rate in zip(("np", "bp", "fa"), rates, strict=True)
        }
        return [claim.holds for claim in views.outcome(("codes",), records).claims]

    assert separated(60.0, 58.0, 29.0) == [None, None]
    assert separated(60.0, 50.0, 20.0) == [True, True]


def test_reconstructions_are_told_apart_by_the_images_they_lie_nearest_to():
    tiles = np.random.default_rng(0).random((16, 3, 5))

    def mosaic(shown):
        return np.block([[shown[4 * row + column] for column in range(4)] for row in range(4)]).tolist()

    images, near = mosaic(tiles), tiles + 0.01
    assert views.recognised(images, mosaic(near)) == 16
    near[[2, 7]] = near[[7, 2]]
    assert views.recognised(images, mosaic(near)) == 14

    def record(made):
        return Record(numbers={}, curves={}, arrays={"images": images, "reconstructions": mosaic(made)})

    def judged(**made):
        return [
            claim.holds for claim in views.outcome(("reconstructions",), {k: record(v) for k, v in made.items()}).claims
        ]

    mean = np.broadcast_to(tiles.mean(0), tiles.shape)
    assert judged(bp=near, fa=mean, np=tiles) == [True]
    assert judged(bp=near, fa=tiles, np=tiles) == judged(bp=near, fa=near, np=tiles) == [False]
    assert judged(fa=mean) == []


def test_the_curves_are_of_the_losses_that_claims_compare():
    own = {"test loss": Curve([0, 1], [[9.0, 5.0]]), "test loss, noise on": Curve([0, 1], [[9.0, 6.0]])}
    records = {
        "np": Record(curves=own, numbers={"minimum of test loss": [5.0], "minimum of test loss, noise on": [6.0]}),
        "bp": Record(curves={"test loss": own["test loss"]}, numbers={"minimum of test loss": [5.0]}),
    }
    (panel,) = views.outcome(("curves",), records).panels
    assert {line.label: list(line.y) for line in panel.lines} == {"np": [9.0, 6.0], "bp": [9.0, 5.0]}
    learned = Record(
        curves={**own, "train loss": Curve([0, 1], [[9.0, 4.0]]), "train loss, noise on": Curve([0, 1], [[9.0, 5.5]])},
        numbers=records["np"].numbers,
    )
    (panel,) = views.outcome(("curves",), {"np": learned}).panels
    assert [(line.dashed, list(line.y)) for line in panel.lines] == [(False, [9.0, 6.0]), (True, [9.0, 5.5])]
