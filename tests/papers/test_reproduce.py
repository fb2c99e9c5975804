"""Running experiments: scales, conditions, seeds, resuming, what is written, and errors."""

import json

import pytest
import torch

from apical.data import ImageData, Split
from apical.papers.reproduce import reproduce, scaled
from apical.training.run_folder import RunFolderError
from papers.walk import walk


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


def test_a_damaged_record_is_named(tmp_path):
    reproduce(walk(), tmp_path / "run", scale=0.1)
    (tmp_path / "run" / "records" / "slow-0-2.json").write_text("{")
    with pytest.raises(ValueError, match=r"slow-0-2\.json is damaged .* delete it"):
        reproduce(walk(), tmp_path / "run", scale=0.1, resume=True)


def test_another_experiment_does_not_go_on_in_a_folder(tmp_path):
    reproduce(walk(), tmp_path / "run", scale=0.5)
    with pytest.raises(RunFolderError, match=r"scale: 0\.5 there, 0\.25 asked"):
        reproduce(walk(), tmp_path / "run", scale=0.25, resume=True)


@pytest.mark.parametrize("steps", [3, 7, 40, 75_000, 281_400])
def test_the_scale_that_an_error_offers_is_large_enough(steps, tmp_path):
    def lengths(scale):
        return scaled(walk(), {"steps": steps}, scale)

    with pytest.raises(ValueError, match="give at least") as error:
        lengths(0.5 / steps)
    offered = float(str(error.value).rpartition(" ")[2])
    assert lengths(offered) == {"steps": 1}
    assert offered < 1.02 / steps


def test_the_command_beside_a_result_makes_the_same_lengths(tmp_path):
    made = reproduce(walk(), tmp_path / "run", scale=1 / 3)
    scale = float(made["command"].partition("--scale ")[2].split()[0])
    assert scale == made["scale"]


def test_overwrite_deletes_the_experiment_and_nothing_else(tmp_path):
    home = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        reproduce(walk(), home, seeds=2, announce=lambda *_: lambda *_: 1 / 0)
    own = {path for path in home.rglob("*") if path.is_file()}
    foreign = [
        home / name for name in ("thesis/a.tex", "records/mine.json", "tasks/slow-0-1/notes.txt", "tasks/x.ckpt")
    ]
    for path in (*foreign, home / "tasks" / "slow-0-1" / "course.ckpt", home / "records" / "slow-0-1.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine" if path in foreign else "half")
    for name in ("outcome.json", "figure.svg", "report.html"):
        (home / name).write_text("earlier")
    outcome = reproduce(walk(), home, seeds=1, scale=0.25, overwrite=True)
    found = {path for path in home.rglob("*") if path.is_file()}
    new = {home / name for name in ("config.json", "outcome.json", "records/slow-0.json", "records/quick-0.json")}
    assert own
    assert found == {*foreign, *new}
    assert all(path.read_text() == "mine" for path in foreign)
    assert json.loads((home / "outcome.json").read_text()) == outcome
