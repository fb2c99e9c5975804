"""Results that are kept: which run replaces which, and what a table says of other data."""

import json

import pytest
import torch

from apical.cli.reproduce import tables
from apical.data import ImageData, Split
from apical.papers import Claim, Outcome, find
from apical.papers.reproduce import described, reproduce
from apical.report import ReportError
from apical.report.papers import paper, results
from papers.walk import Walk, walk


def test_a_table_of_other_data_says_so_with_the_lengths_that_they_make(tmp_path, monkeypatch):
    one = find("nokland2016/text-ifa")
    split = Split(torch.zeros(30, 1, 28, 28, dtype=torch.uint8), torch.arange(30) % 10)
    whole = [
        Split(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)) for n in (60_000, 10_000)
    ]
    (tmp_path / "mnist").mkdir()
    runs = [
        {
            "experiment": one.name, "scale": 0.1, "seeds": [0], "conditions": list(one.conditions), "length": one.length,
            "lengths": {"steps": 3000},
            "data": described(one, {"data": str(tmp_path / "mnist")}, ImageData("x", *own, 10, tuple("0123456789"))),
        }
        for own in ((split, split), whole)
    ]  # fmt: skip
    assert paper.extent(runs[0]).endswith("1 seed; on other data, mnist (30 + 30 images): 3,000 steps")
    assert paper.extent(runs[1]).endswith("1 seed")


def test_a_longer_run_on_the_same_other_data_replaces_a_shorter_one(tmp_path, monkeypatch):
    split = Split(torch.zeros(9, 1, 28, 28, dtype=torch.uint8), torch.arange(9))
    kept = ImageData("x", split, split, 10, tuple("0123456789"))
    monkeypatch.setattr("apical.papers.reproduce.images.load", lambda name: kept)
    one = walk(data="ylecun/mnist")
    monkeypatch.setattr("apical.report.papers.paper.experiments", lambda: {one.name: one})
    for scale in (0.25, 0.5):
        reproduce(one, tmp_path / f"run-{scale}", data="fashion", scale=scale)
        results.publish(tmp_path / f"run-{scale}", tmp_path / "results")
    reproduce(one, tmp_path / "own", scale=0.5)
    with pytest.raises(ReportError, match="holds a run on other data"):
        results.publish(tmp_path / "own", tmp_path / "results")


def test_a_longer_run_replaces_a_shorter_one_and_not_the_other_way_round(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_draw", lambda outcome, path: None)
    reproduce(walk(), tmp_path / "short", scale=0.25)
    reproduce(walk(), tmp_path / "long", scale=0.5)
    results.publish(tmp_path / "short", tmp_path / "results")
    page = results.publish(tmp_path / "long", tmp_path / "results")
    with pytest.raises(ReportError, match="holds a longer run"):
        results.publish(tmp_path / "short", tmp_path / "results")
    # Length goes before seeds.
    reproduce(walk(), tmp_path / "few", scale=0.6, seeds=1)
    results.publish(tmp_path / "few", tmp_path / "results")
    with pytest.raises(ReportError, match="holds a longer run"):
        results.publish(tmp_path / "long", tmp_path / "results")
    reproduce(walk(), tmp_path / "part", scale=0.6, seeds=2, only=["slow"])
    with pytest.raises(ReportError, match="holds a run of more conditions"):
        results.publish(tmp_path / "part", tmp_path / "results")
    reproduce(walk(), tmp_path / "more", scale=0.6, seeds=2)
    results.publish(tmp_path / "more", tmp_path / "results")
    with pytest.raises(ReportError, match="holds a run of more seeds"):
        results.publish(tmp_path / "few", tmp_path / "results")
    assert json.loads((tmp_path / "results" / "lillicrap2016" / "walk.json").read_text())["scale"] == 0.6
    # Since then the experiment has become ten times as long, and has one condition less.
    now = walk(long=10, only=("quick",))
    monkeypatch.setattr(results, "experiments", lambda: {now.name: now})
    reproduce(now, tmp_path / "tenth", scale=0.1)
    results.publish(tmp_path / "tenth", tmp_path / "results")
    reproduce(now, tmp_path / "less", scale=0.05)
    with pytest.raises(ReportError, match="holds a longer run"):
        results.publish(tmp_path / "less", tmp_path / "results")
    assert page.name == "lillicrap2016.md"


@pytest.mark.parametrize(
    ("scale", "kind", "holds", "said"),
    [
        (1.0, "paper", False, "no"),
        (0.25, "paper", False, "not comparable at this length"),
        (0.25, "ours", False, "not comparable at this length"),
        (0.25, "derived", False, "no"),
        (0.25, "paper", True, "yes"),
        (0.25, "paper", None, "undecided"),
    ],
)
def test_a_shortened_run_refutes_only_what_was_derived(scale, kind, holds, said, tmp_path, monkeypatch):
    claim = Claim("it moves", holds, "it did", kind)
    monkeypatch.setattr(Walk, "outcome", lambda self, records: Outcome(claims=[claim]))
    one = walk()
    monkeypatch.setattr(results, "experiments", lambda: {one.name: one})
    outcome = reproduce(one, tmp_path / "run", scale=scale, seeds=1)
    page = paper.write(tmp_path / "run").read_text()
    kept = results.publish(tmp_path / "run", tmp_path / "results").read_text()
    (shown,) = tables(outcome)
    assert f"<td>{kind}</td>" in page
    assert f">{said}</span>" in page
    assert f"| it moves | {kind} | {'**no**' if said == 'no' else said} | it did |" in kept
    assert list(shown.columns[2].cells) == [said]


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"outcome\.json: can't be read"):
        paper.write(tmp_path)
    (tmp_path / "outcome.json").write_text("{}")
    with pytest.raises(ReportError, match="is damaged"):
        paper.write(tmp_path)
    with pytest.raises(ReportError, match="holds no results"):
        results.pages(tmp_path / "none")
