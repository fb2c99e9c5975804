"""Run folders and their files: never overwritten, never damaged unseen, not made for what can't be made."""

import dataclasses
from pathlib import Path

import pytest
import torch

from apical import distributed
from apical.comparison import compare
from apical.papers import find
from apical.papers.reproduce import reproduce
from apical.training import (
    RunFolder,
    RunFolderError,
    train,
)
from training.runs import DIGITS, PAIR, SHORT


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    train(SHORT, tmp_path / "run", data=DIGITS)
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunFolderError, match=r"holds a run already; resume it"):
        train(SHORT, tmp_path / "run", data=DIGITS)
    with pytest.raises(RunFolderError, match=r"made with other settings .*epochs: 2 there, 3 asked"):
        train(dataclasses.replace(SHORT, epochs=3), tmp_path / "run", data=DIGITS, resume=True)
    assert before == sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    with pytest.raises(RunFolderError, match=r"holds no run to resume"):
        train(SHORT, tmp_path / "other", data=DIGITS, resume=True)
    assert not (tmp_path / "other").exists()


def test_what_can_not_be_built_writes_nothing(tmp_path):
    for change in ({"network": "63-20-10"}, {"network": "64-20-10", "activation": "than"}):
        with pytest.raises(ValueError, match=r"64|tanh"):
            train(dataclasses.replace(SHORT, **change), tmp_path / "run", data=DIGITS)
        assert not (tmp_path / "run").exists()


def test_a_line_of_metrics_that_a_kill_cut_short_is_dropped(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.append({"step": 1})
    run.metrics.append({"step": 2})
    with run.metrics.path.open("a") as file:
        file.write('{"step": 3, "te')
    assert run.metrics.read() == [{"step": 1}, {"step": 2}]
    run.metrics.cut(1)
    assert run.metrics.path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize("damage", ["{", "[]", '{"epoch": 1}'])
def test_a_damaged_line_of_metrics_is_told_with_its_place(tmp_path, damage):
    run = RunFolder(tmp_path)
    run.metrics.append({"step": 1})
    with run.metrics.path.open("a") as file:
        file.write(f"{damage}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*; restore it, or delete .* to start anew"):
        run.metrics.read()


UNMAKEABLE = [
    ({"optimizer": "SGD:momentum=-1"}, "optimizer 'SGD:momentum=-1'.*Invalid momentum value: -1"),
    ({"optimizer": "Adam:betas=0.9"}, r"optimizer 'Adam:betas=0.9' can't be made: .*; by default betas=\(0.9, 0.999\)"),
    ({"optimizer": "Muon"}, "optimizer 'Muon'.*2D"),
    ({"scheduler": "MultiStepLR:milestones=3"}, "scheduler 'MultiStepLR:milestones=3'"),
    ({"scheduler": "StepLR:step_size=0"}, "scheduler 'StepLR:step_size=0' can't be made"),
    ({"scheduler": "OneCycleLR:max_lr=0.1,total_steps=1", "epochs": 3}, "scheduler 'OneCycleLR.*total steps is 1"),
    ({"accelerator": "cuda"}, "accelerator 'cuda' can't be had here .*give 'auto' or 'cpu'"),
]


@pytest.mark.parametrize(
    ("change", "message"),
    [*UNMAKEABLE, ({"rules": ("bp", "np:solver=ridge"), "connectivity": 0.5}, "use solver='sgd'")],
)
def test_a_comparison_of_which_something_can_not_be_made_writes_nothing(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=message):
        compare(dataclasses.replace(PAIR, **change), tmp_path / "all", data=DIGITS)
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(("change", "message"), UNMAKEABLE)
def test_a_run_of_which_something_can_not_be_made_writes_nothing(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(SHORT, **change), tmp_path / "run", data=DIGITS)
    assert not (tmp_path / "run").exists()


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = ("thesis/chapter.tex", "notes.txt", "checkpoint/best.ckpt", ".git/config", "runs/other/config.json")


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path, monkeypatch):
    for folder in (tmp_path / "one", tmp_path / "new"):
        train(SHORT, folder, data=DIGITS)
    monkeypatch.chdir(tmp_path / "one")
    for name in FOREIGN:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(f"mine: {name}")
    before = contents(tmp_path / "one")
    config = dataclasses.replace(SHORT, seed=1)
    train(config, ".", data=DIGITS, overwrite=True)  # As `--folder .` in the run's folder has it.
    after = contents(tmp_path / "one")
    assert {name: after[name] for name in FOREIGN} == {name: before[name] for name in FOREIGN}
    assert after.keys() == before.keys() == {*FOREIGN, *contents(tmp_path / "new")}
    assert RunFolder(".").reopen()["seed"] == 1


def test_a_comparison_is_overwritten_with_all_its_runs_and_nothing_else(tmp_path):
    home = tmp_path / "all"
    compare(dataclasses.replace(PAIR, rules=("fa", "usf")), home, data=DIGITS)
    own = contents(home)
    for name in (*FOREIGN, "runs/fa-0/notes.txt", "runs/fa-7/config.json", "together/other/config.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"mine: {name}")
    before = contents(home)
    compare(dataclasses.replace(PAIR, rules=("bp",), seeds=1), home, data=DIGITS, overwrite=True)
    after = contents(home)
    new = {"config.json", "comparison.json", *(f"runs/bp-0/{name}" for name in contents(home / "runs" / "bp-0"))}
    assert after.keys() == before.keys() - own.keys() | new
    assert all(after[name] == before[name] for name in before.keys() - own.keys())
    assert not (home / "runs" / "usf-1").exists()


def test_a_run_folder_that_is_a_link_stays_one(tmp_path):
    train(SHORT, tmp_path / "disk" / "run", data=DIGITS)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    train(dataclasses.replace(SHORT, seed=1), tmp_path / "run", data=DIGITS, overwrite=True)
    assert (tmp_path / "run").is_symlink()
    assert RunFolder(tmp_path / "disk" / "run").reopen()["seed"] == 1


@pytest.mark.parametrize("damage", [{"seeds": "3"}, {"rules": None}, {"first_seed": []}])
def test_a_comparison_whose_config_does_not_say_what_it_left_is_left_alone(tmp_path, damage):
    home = RunFolder(tmp_path / "all")
    kept = {**PAIR.asdict(), "rules": list(PAIR.rules), **damage}
    home.start(kept)
    with pytest.raises(RunFolderError, match=r"overwrite: .*config.json does not say what belongs to the run"):
        compare(PAIR, home.path, data=DIGITS, overwrite=True)
    assert home.reopen() == kept


@pytest.mark.parametrize("size", ["world", "environment"])
def test_a_comparison_by_several_processes_is_refused_before_anything_is_written(tmp_path, monkeypatch, size):
    if size == "world":
        monkeypatch.setattr(distributed, "world", lambda: 2)
    else:
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ValueError, match=r"a comparison works in one process, and 2 were started together; .*-m apical train"
    ):
        compare(PAIR, tmp_path / "all", data=DIGITS)
    with pytest.raises(ValueError, match=r"experiment .* works in one process, and 2 were started together"):
        reproduce(find("lillicrap2016/fig2a"), tmp_path / "all", scale=0.01)
    assert list(tmp_path.iterdir()) == []
