"""Checkpoints: whole, of this run, and free of code."""

import dataclasses
from pathlib import Path

import pytest
import torch

from apical.data import ImageData, Split
from apical.training import CheckpointError, TrainConfig, train
from apical.training import checkpoint as checkpoints
from processes import BoomError, boom_at
from training.runs import DIGITS, SHORT, weights


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(path, {"step": 3, "model": {"w": torch.ones(2)}})
    good = path.read_bytes()
    assert checkpoints.load(path)["step"] == 3
    for cut in (0, 10, 60, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(CheckpointError, match=r"last\.ckpt.*(no checkpoint|damaged).*delete it"):
            checkpoints.load(path)
    for position in (25, 100, len(good) // 2, len(good) - 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(CheckpointError, match=r"last\.ckpt"):
            checkpoints.load(path)
    torch.save({"step": 3}, path)
    with pytest.raises(CheckpointError, match="no checkpoint of apical's"):
        checkpoints.load(path)
    with pytest.raises(CheckpointError, match="can't read"):
        checkpoints.load(tmp_path / "none.ckpt")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_no_code_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    checkpoints.save(path, {"step": Evil()})
    with pytest.raises(CheckpointError, match="other than tensors and numbers"):
        checkpoints.load(path)
    assert not Path("evil-was-here").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    with pytest.raises(BoomError):
        train(SHORT, tmp_path / "run", data=DIGITS, watcher=boom_at(6))
    other = dataclasses.replace(SHORT, network="64-21-10")
    train(other, tmp_path / "other", data=DIGITS)
    (tmp_path / "run/checkpoint/last.ckpt").write_bytes((tmp_path / "other/checkpoint/last.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match="does not fit this run"):
        train(SHORT, tmp_path / "run", data=DIGITS, resume=True)


def test_a_run_of_the_version_before_goes_on(tmp_path):
    """Its folder as 0.1.0 left it, stopped at step 5 of 8 with a checkpoint at step 3: batches, steps and format are the same."""
    few = ImageData(
        "few",
        Split(DIGITS.train.images[:64], DIGITS.train.labels[:64]),
        Split(DIGITS.test.images[:20], DIGITS.test.labels[:20]),
        10,
        DIGITS.class_names,
    )
    (tmp_path / "cut" / "checkpoint").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "checkpoint/last.ckpt"):
        (tmp_path / "cut" / name).write_bytes((Path(__file__).parent / "before" / Path(name).name).read_bytes())
    config = TrainConfig(network="64-4-10", rule="kp", epochs=2, batch=16, checkpoint_every=3)
    assert checkpoints.load(tmp_path / "cut" / "checkpoint" / "last.ckpt")["step"] == 3
    again = train(config, tmp_path / "cut", data=few, resume=True)
    whole = train(config, tmp_path / "whole", data=few)
    assert again["steps"] == 8
    # The first steps were another machine's, whose rounding may differ.
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "cut")[name], value, rtol=1e-4, atol=1e-5)
    assert again["test_loss"] == pytest.approx(whole["test_loss"], rel=1e-4)
