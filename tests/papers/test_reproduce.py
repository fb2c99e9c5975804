"""Running experiments: scales, conditions, seeds, resuming, what is written, and errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from apical.data import ImageData, Split
from apical.papers import Claim, Curve, Experiment, Line, Outcome, Panel, Published, Record, Row, find
from apical.papers.course import course, spread
from apical.papers.reproduce import _described, _scaled, reproduce
from apical.report import ReportError
from apical.report.papers import paper, results
from apical.training.run_folder import RunFolderError


@dataclass(frozen=True, kw_only=True)
class Walk(Experiment):
    """A random walk in place of a network."""

    calls: list = field(default_factory=list, compare=False)

    @property
    def conditions(self):
        return ("slow", "quick")

    def steps(self, data):
        return {"steps": 400, "warm-up steps": 40}

    def run(self, task):
        self.calls.append((task.condition, task.seeds))
        state = torch.nn.Parameter(torch.zeros(len(task.seeds)), requires_grad=False)
        own = torch.Generator().manual_seed(task.seeds[0])
        module = torch.nn.ParameterList([state])

        def learn(step):
            state.add_(torch.randn(len(task.seeds), generator=own) + 0.1 * torch.rand(1))

        torch.manual_seed(3)
        found = course(
            task,
            task.lengths["steps"],
            learn=learn,
            measure=lambda: {"place": state.tolist()},
            at=spread(task.lengths["steps"], 8),
            parts={"module": module, "own": own},
        )
        return Record(curves=found, numbers={"end": found["place"].last})

    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        return Outcome(
            rows=[Row(name, record.numbers["end"], Published(0.5, 100.0)) for name, record in records.items()],
            claims=[Claim("it moves", True, "it did")],
            panels=[Panel(title="a", lines=[Line.of(name, r.curves["place"]) for name, r in records.items()])],
        )


def walk(**options):
    return Walk(
        name="lillicrap2016/walk", title="A walk", source="Nowhere", length="400 steps", seeds=3, minutes=0.1, **options
    )


def test_conditions_and_seeds_are_run_and_kept(tmp_path):
    one = walk()
    outcome = reproduce(one, tmp_path / "run", scale=0.25)
    assert one.calls == [("slow", (0, 1, 2)), ("quick", (0, 1, 2))]
    assert outcome["lengths"] == {"steps": 100, "warm-up steps": 10}
    assert outcome["command"] == "apical reproduce lillicrap2016/walk --scale 0.25"
    assert json.loads((tmp_path / "run" / "outcome.json").read_text()) == outcome
    assert [row["agrees"] for row in outcome["shows"]["rows"]] == [True, True]
    curve = json.loads((tmp_path / "run" / "records" / "slow-0-2.json").read_text())["curves"]["place"]
    assert len(curve["y"]) == 3
    assert curve["x"][0] == 0
    assert curve["x"][-1] == 100


def test_seeds_one_by_one_are_joined(tmp_path):
    one = walk(together=False)
    outcome = reproduce(one, tmp_path / "run", seeds=2, first_seed=5, only=["quick"])
    assert one.calls == [("quick", (5,)), ("quick", (6,))]
    assert outcome["seeds"] == [5, 6]
    assert len(outcome["shows"]["rows"][0]["ours"]) == 2
    assert "--seeds 2 --first-seed 5 --only quick" in outcome["command"]


@pytest.mark.parametrize("at", [130, 256, 399])
def test_a_stopped_experiment_ends_as_one_that_was_not(tmp_path, at, monkeypatch):
    monkeypatch.setattr("apical.papers.experiment.CHECKPOINT_SECONDS", -1.0)
    whole = reproduce(walk(), tmp_path / "whole")

    class KilledError(Exception):
        pass

    def announce(condition, seeds):
        def watcher(done, steps, note):
            if condition == "quick" and done >= at:
                raise KilledError

        return watcher

    with pytest.raises(KilledError):
        reproduce(walk(), tmp_path / "run", announce=announce)
    assert not (tmp_path / "run" / "outcome.json").exists()
    again = walk()
    resumed = reproduce(again, tmp_path / "run", resume=True)
    assert again.calls == [("quick", (0, 1, 2))]
    assert resumed["shows"] == whole["shows"]


def test_what_is_asked_badly_is_refused_before_anything_is_written(tmp_path):
    place = tmp_path / "run"
    for options, match in (
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": 1.5}, "at most 1"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": 0.01}, "no warm-up steps to make; give at least 0.025"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"first_seed": -1}, "first_seed"),
        ({"only": ["fast"]}, "no condition 'fast'; its conditions are slow, quick"),
        ({"data": "ylecun/mnist"}, "draws its own samples"),
    ):
        with pytest.raises(ValueError, match=match):
            reproduce(walk(), place, **options)
    assert not place.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(RunFolderError, match="not empty"):
        reproduce(walk(), tmp_path / "full")
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        reproduce(walk(), place, resume=True)


def test_images_of_another_kind_are_refused_and_other_data_is_named(tmp_path, monkeypatch):
    split = Split(torch.zeros(9, 1, 28, 28, dtype=torch.uint8), torch.arange(9))
    kept = ImageData("x", split, split, 10, tuple("0123456789"))
    monkeypatch.setattr("apical.papers.reproduce.images.load", lambda name: kept)
    one = walk(data="uoft-cs/cifar10")
    with pytest.raises(
        ValueError, match=r"data: ylecun/mnist has images of \[1, 28, 28\] .* about uoft-cs/cifar10, \[3, 32, 32\]"
    ):
        reproduce(one, tmp_path / "run", data="ylecun/mnist")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mnist").mkdir()
    (tmp_path / "fashion").mkdir()
    one = walk(data="ylecun/mnist")
    commands = [reproduce(one, tmp_path / f"run-{d}", data=str(tmp_path / d))["command"] for d in ("mnist", "fashion")]
    assert commands == ["apical reproduce lillicrap2016/walk", "apical reproduce lillicrap2016/walk --data fashion"]


def test_a_table_of_other_data_says_so_with_the_lengths_that_they_make(tmp_path, monkeypatch):
    one = find("nokland2016/text-ifa")
    split = Split(torch.zeros(30, 1, 28, 28, dtype=torch.uint8), torch.arange(30) % 10)
    whole = [
        Split(torch.zeros(n, 1, 1, 1, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)) for n in (60_000, 10_000)
    ]
    (tmp_path / "mnist").mkdir()
    described = [
        {
            "experiment": one.name, "scale": 0.1, "seeds": [0], "conditions": list(one.conditions), "length": one.length,
            "lengths": {"steps": 3000},
            "data": _described(one, {"data": str(tmp_path / "mnist")}, ImageData("x", *own, 10, tuple("0123456789"))),
        }
        for own in ((split, split), whole)
    ]  # fmt: skip
    assert paper.extent(described[0]).endswith("1 seed; on other data, mnist (30 + 30 images): 3,000 steps")
    assert paper.extent(described[1]).endswith("1 seed")


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


def test_a_damaged_record_is_named(tmp_path):
    reproduce(walk(), tmp_path / "run", scale=0.1)
    (tmp_path / "run" / "records" / "slow-0-2.json").write_text("{")
    with pytest.raises(ValueError, match=r"slow-0-2\.json is damaged .* delete it"):
        reproduce(walk(), tmp_path / "run", scale=0.1, resume=True)


def test_another_experiment_does_not_go_on_in_a_folder(tmp_path):
    reproduce(walk(), tmp_path / "run", scale=0.5)
    with pytest.raises(RunFolderError, match=r"scale: 0\.5 there, 0\.25 asked"):
        reproduce(walk(), tmp_path / "run", scale=0.25, resume=True)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'lillicrap2016/fig2a'"):
        find("lillicrap2016/fig2aa")
    with pytest.raises(ValueError, match="name one of lillicrap2016/"):
        find("lillicrap2016")
    with pytest.raises(ValueError, match=r"name one of lillicrap2016/fig2a, lansdell2020/fig2a$"):
        find("fig2a")


@pytest.mark.parametrize("steps", [3, 7, 40, 75_000, 281_400])
def test_the_scale_that_an_error_offers_is_large_enough(steps, tmp_path):
    def lengths(scale):
        return _scaled(walk(), {"steps": steps}, scale)

    with pytest.raises(ValueError, match="give at least") as error:
        lengths(0.5 / steps)
    offered = float(str(error.value).rpartition(" ")[2])
    assert lengths(offered) == {"steps": 1}
    assert offered < 1.02 / steps


def test_the_command_beside_a_result_makes_the_same_lengths(tmp_path):
    made = reproduce(walk(), tmp_path / "run", scale=1 / 3)
    scale = float(made["command"].partition("--scale ")[2].split()[0])
    assert scale == made["scale"]


def test_rows_agree_within_the_errors_of_both_or_ten_percent():
    assert Row("a", [2.0, 2.2, 2.4], Published(2.0, 0.1)).agrees
    assert Row("a", [2.1], Published(2.0)).agrees
    assert not Row("a", [2.1], Published(2.0), within=0.05).agrees
    assert Row("a", [2.0, 2.4], Published(2.0, 0.1), within=0.0).agrees
    assert not Row("a", [2.0, 12.0], Published(2.0)).agrees
    assert not Row("a", [2.0, 12.0], Published(2.0, 0.5)).agrees
    assert Row("a", [2.0], Published(1.0, to=3.0)).agrees
    assert Row("a", [3.2], Published(1.0, to=3.0)).agrees
    assert not Row("a", [0.5], Published(1.0, to=3.0)).agrees
    assert not Row("a", [3.5], Published(1.0, to=3.0)).agrees
    assert not Row("a", [2.3], Published(2.0)).agrees
    assert not Row("a", [float("nan")], Published(2.0)).agrees
    assert Row("a", [2.0]).agrees is None
    assert Row("a", [2.0], Published(2.0, tag="M")).agrees is None
    assert Row("a", [1.0, 3.0]).sem == pytest.approx(1.0)


def test_a_line_is_the_mean_over_the_seeds_that_are_there():
    line = Line.of("a", Curve([0, 1, 2], [[1.0, 3.0, float("nan")], [3.0, 3.0, float("nan")]]))
    assert line.x == [0, 1]
    assert line.y == [2.0, 3.0]
    assert line.spread == pytest.approx([1.0, 0.0])


def test_records_survive_json():
    record = Record(
        curves={"a": Curve([0, 1], [[1.0, float("nan")]])}, numbers={"b": [float("inf")]}, seeds=(4,), seconds=1.5
    )
    again = Record.of(json.loads(json.dumps(record.asdict(), allow_nan=False)))
    np.testing.assert_array_equal(again.curves["a"].values, [[1.0, np.nan]])
    assert np.isnan(again.numbers["b"][0])
    longer = Record(curves={"a": Curve([0, 1, 2], [[1.0, 2.0, 3.0]])}, numbers={"b": [2.0]}, seeds=(5,))
    joined = Record.joined([again, longer])
    np.testing.assert_array_equal(joined.curves["a"].values, [[1.0, np.nan, np.nan], [1.0, 2.0, 3.0]])
    assert joined.seeds == [4, 5]


def test_a_longer_run_replaces_a_shorter_one_and_not_the_other_way_round(tmp_path):
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
    assert page.name == "lillicrap2016.md"


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"outcome\.json: can't be read"):
        paper.write(tmp_path)
    (tmp_path / "outcome.json").write_text("{}")
    with pytest.raises(ReportError, match="is damaged"):
        paper.write(tmp_path)
    with pytest.raises(ReportError, match="holds no results"):
        results.pages(tmp_path / "none")
