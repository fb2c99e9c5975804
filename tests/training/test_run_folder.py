"""Run folders and their files: never overwritten, never damaged unseen, not made for what can't be made."""

import dataclasses

import pytest
import torch

from apical.comparison import compare
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
