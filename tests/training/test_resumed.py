"""A run that stops, is killed or has lost something, and goes on."""

import dataclasses
import signal

import pytest

from apical.training import (
    RunFolder,
    TrainConfig,
    train,
)
from apical.training import checkpoint as checkpoints
from processes import BoomError, boom_at, killed_and_resumed, wait_for
from training.runs import DIGITS, SHORT, TIMELESS, same, start, weights

PHASES = ("wm", "np", "np:solver=ridge,warmup=10", "np-direct", "sg-direct:solver=ridge", "reinforce")


@pytest.mark.parametrize(
    ("rule", "connectivity"),
    [
        *((rule, 1.0) for rule in ("bp", "fa", "dfa", "kp", "kp:rank=4,every=3", "brsf", "shallow", *PHASES)),
        *((rule, 0.5) for rule in ("kp", "brsf", "wm")),
    ],
)
def test_a_run_that_stops_and_resumes_ends_bit_identical(tmp_path, rule, connectivity):
    config = dataclasses.replace(
        SHORT,
        rule=rule,
        optimizer="Adam",
        learning_rate=0.003,
        scheduler="StepLR:step_size=1",
        connectivity=connectivity,
    )
    train(config, tmp_path / "whole", data=DIGITS)

    limits = (3, 14, 23, 31, 45) if rule in ("kp", "np") else (14, 31)
    for attempt, limit in enumerate(limits):
        with pytest.raises(BoomError):
            train(config, tmp_path / "cut", data=DIGITS, resume=attempt > 0, watcher=boom_at(limit))
    result = train(config, tmp_path / "cut", data=DIGITS, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    whole, cut = (RunFolder(tmp_path / name).metrics.read() for name in ("whole", "cut"))
    for a, b in zip(whole, cut, strict=True):
        assert {**a, **TIMELESS} == {**b, **TIMELESS}
    assert result["test_error"] == RunFolder(tmp_path / "whole").result["test_error"]


def test_a_run_whose_last_measurement_was_lost_measures_again(tmp_path):
    whole = train(SHORT, tmp_path / "run", data=DIGITS)
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:-1]))
    (tmp_path / "run" / "result.json").unlink()
    again = train(SHORT, tmp_path / "run", data=DIGITS, resume=True)
    assert (again["test_error"], again["test_loss"]) == (whole["test_error"], whole["test_loss"])
    assert len(metrics.read_text().splitlines()) == len(lines)


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, "--epochs", "2000", "--align-every", "0")
    wait_for(lambda: (folder / "checkpoint" / "last.ckpt").exists(), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "stopped at step" in errors
    assert "can be resumed" in errors
    assert RunFolder(folder).result is None
    assert checkpoints.load(folder / "checkpoint" / "last.ckpt")["step"] > 0


@pytest.mark.parametrize(("kills", "epochs"), [(1, 25), pytest.param(10, 170, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_bit_identical(tmp_path, kills, epochs):
    """In so many epochs no start comes to the end."""
    config = TrainConfig(rule="kp", network="64-30-10", epochs=epochs, checkpoint_every=7, align_every=500)
    train(config, tmp_path / "whole", data=DIGITS)
    folder = tmp_path / "run"
    killed_and_resumed(kills, folder, lambda: start(folder, "--epochs", str(epochs), "--align-every", "500"), "train")
    assert same(weights(tmp_path / "whole"), weights(folder))


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train(SHORT, tmp_path / "run", data=DIGITS)
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert train(SHORT, tmp_path / "run", data=DIGITS, resume=True) == first
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
