"""The convolutional network: rules and rates, the search, and claims that can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import apical
from apical.data import ImageData, Split
from apical.papers import find
from apical.papers.experiment import Task
from apical.papers.lansdell2020.cnn.search import draws
from apical.papers.lansdell2020.cnn.tables import Rates, rule_of
from apical.papers.record import Curve, Record


def split(n: int, seed: int = 0) -> Split:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 32, 32), generator=draw).to(torch.uint8)
    return Split(images, torch.randint(10, (n,), generator=draw))


@pytest.fixture(scope="module")
def images() -> ImageData:
    return ImageData("drawn", split(20), split(3, 1), 10, tuple("abcdefghij"))


@pytest.mark.parametrize("condition", ["bp, noise", "np", "sg"])
def test_a_network_learns(condition, images, tmp_path):
    one = replace(find("lansdell2020/table2b"), form="paper")  # Two thirds of the time.
    assert one.steps(images) == {"steps": 200}
    task = Task(condition, (1,), 1.0, {"steps": 1}, tmp_path, images)
    record = one.run(task)
    state = task.restore("course")
    assert state is not None
    assert state["parts"]["training"]["learner"]["adapted"] == (0 if condition == "bp, noise" else 1)
    first = record.curves["test error"].y[0]
    assert record.numbers["accuracy"] == [100 - min(first)]


def test_rates_of_d_are_for_sums_over_a_minibatch():
    plasticity = rule_of("np", Rates()).plasticity
    assert isinstance(plasticity, apical.plasticity.Perturbation)
    assert (plasticity.noise, plasticity.rate) == (0.067, pytest.approx(128 * 8.322e-6))
    assert rule_of("dfa, noise", Rates()).name == "dfa"
    assert rule_of("sg", Rates()).name == "sg-direct"


def test_the_search_draws_fifty_within_the_printed_ranges(images, tmp_path):
    tries = draws()
    assert len(tries) == 50 == len(set(tries))
    assert all(1e-4 <= one.noise <= 1e-1 for one in tries)
    assert all(1e-6 <= rate <= 1e-3 for one in tries for rate in (one.weights, one.feedback))
    assert min(one.noise for one in tries) < 1e-3 < 1e-2 < max(one.noise for one in tries)
    one = replace(find("lansdell2020/search"), form="paper")
    assert one.steps(images) == {"steps": 200}  # Of 18 images: two are held out.
    record = one.run(Task("draw 2", (0,), 1.0, {"steps": 1}, tmp_path, images))
    assert set(record.numbers) == {"held-out accuracy"}
    assert record.curves.keys() == {"training error", "held-out error"}
    shown = one.outcome({"draw 2": record, "draw 3": Record(numbers={"held-out accuracy": [99.9]})})
    assert shown.notes[0].startswith("Best of 2: draw 3.")


def of(accuracy: float) -> Record:
    curves = {f"{name} error": Curve([0, 1], [[90.0, 100 - accuracy]]) for name in ("test", "training")}
    return Record(curves=curves, numbers={"accuracy": [accuracy], "last accuracy": [accuracy]}, seeds=[0])


def test_claims_can_fail_and_can_be_judged_by_rows():
    one = find("lansdell2020/table2b")
    good = {"bp": 76.9, "bp, noise": 76.8, "dfa": 72.3, "dfa, noise": 72.4, "np": 74.8, "sg": 75.3}
    found = one.outcome({name: of(value) for name, value in good.items()})
    assert [claim.holds for claim in found.claims] == [True] * 5
    assert [row.agrees for row in found.rows if row.published is not None] == [True] * 6
    assert one.claims_of({row.label: row.ours for row in found.rows}) == found.claims
    bad = {"bp": 70.0, "bp, noise": 60.0, "dfa": 80.0, "dfa, noise": 60.0, "np": 75.0, "sg": 75.0}
    assert [claim.holds for claim in one.outcome({name: of(value) for name, value in bad.items()}).claims] == [
        False
    ] * 5
    assert find("lansdell2020/table1").outcome({"np": of(75.0)}).claims == []
