"""Seeds side by side that stop, are killed or have lost something, and go on."""

import dataclasses
import json
import shutil
import signal

import pytest

from apical.comparison import compare
from apical.training import CompareConfig, RunFolder, train
from processes import BoomError, boom_at, killed_and_resumed, wait_for
from training.runs import DIGITS
from training.together import FEW, SHORT, compared, start


@pytest.mark.parametrize(
    ("rules", "limits"),
    [
        (("kp", "dfa"), (3, 14, 11, 20, 30, 1)),
        (("wm", "brsf"), (14, 50)),
        (("kp-direct", "shallow"), (14, 50)),
        (("kp:rank=4,every=3", "shallow"), (14, 50)),
    ],
)
def test_a_comparison_that_stops_and_resumes_ends_bit_identical(tmp_path, rules, limits):
    config = dataclasses.replace(
        SHORT, rules=rules, optimizer="Adam", learning_rate=0.003, scheduler="StepLR:step_size=1"
    )
    compare(config, tmp_path / "whole", data=DIGITS)

    def stopper(limit):
        taken = []

        def watcher(step, steps, newest):
            taken.append(step)
            if len(taken) == limit:
                raise BoomError

        return lambda rule, seeds: watcher

    for attempt, limit in enumerate(limits):
        with pytest.raises(BoomError):
            compare(config, tmp_path / "cut", data=DIGITS, resume=attempt > 0, announce=stopper(limit))
    compare(config, tmp_path / "cut", data=DIGITS, resume=True)
    compared(tmp_path / "cut", tmp_path / "whole")


def test_a_comparison_that_was_stopped_before_its_results_were_all_written_goes_on(tmp_path, monkeypatch):
    compare(SHORT, tmp_path / "whole", data=DIGITS)
    written = []
    finish = RunFolder.finish

    def dying(self, result):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(self.path)
        finish(self, result)

    monkeypatch.setattr(RunFolder, "finish", dying)
    with pytest.raises(KeyboardInterrupt):
        compare(SHORT, tmp_path / "cut", data=DIGITS)
    monkeypatch.undo()
    compare(SHORT, tmp_path / "cut", data=DIGITS, resume=True)
    compared(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("lost", ["runs/kp-1", "runs", "runs/dfa-0/result.json"])
def test_what_is_lost_of_a_finished_comparison_is_trained_again(tmp_path, lost):
    whole = compare(SHORT, tmp_path / "whole", data=FEW)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    place = tmp_path / "cut" / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert compare(SHORT, tmp_path / "cut", data=FEW, resume=True)["table"] == whole["table"]
    compared(tmp_path / "cut", tmp_path / "whole")


def test_a_run_that_is_lost_while_its_group_goes_on_is_trained_from_the_start(tmp_path):
    compare(SHORT, tmp_path / "whole", data=FEW)

    with pytest.raises(BoomError):
        compare(SHORT, tmp_path / "cut", data=FEW, announce=lambda rule, seeds: boom_at(9))
    shutil.rmtree(tmp_path / "cut" / "runs" / "kp-1")
    compare(SHORT, tmp_path / "cut", data=FEW, resume=True)
    compared(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(("kills", "epochs"), [(1, 10), pytest.param(10, 110, marks=pytest.mark.slow)])
def test_a_comparison_killed_at_random_moments_ends_bit_identical(tmp_path, kills, epochs):
    """In so many epochs no start comes to the end."""
    config = CompareConfig(
        rules=("kp", "usf"), seeds=3, network="64-30-10", epochs=epochs, checkpoint_every=7, align_every=500
    )
    compare(config, tmp_path / "whole", data=DIGITS)
    folder = tmp_path / "cut"
    killed_and_resumed(kills, folder, lambda: start(folder, "--epochs", str(epochs)), "compare", "--no-time-steps")
    compared(folder, tmp_path / "whole")


def test_ctrl_c_leaves_a_comparison_that_can_be_resumed(tmp_path):
    folder = tmp_path / "all"
    process = start(folder, "--epochs", "2000")
    wait_for(lambda: (folder / "together" / "kp" / "checkpoint" / "last.ckpt").exists(), process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"can be resumed: apical compare --resume {folder}" in errors


def test_a_comparison_goes_on_as_it_was_started(tmp_path):
    """Here one by one, as by a machine or a version that chose otherwise."""
    config = dataclasses.replace(SHORT, replicas="auto")
    home = tmp_path / "all"
    RunFolder(home).start(json.loads(json.dumps(config.asdict())))
    train(config.run("kp", 0), home / "runs" / "kp-0", data=DIGITS)
    found = compare(config, home, data=DIGITS, resume=True)
    assert [rule["together"] for rule in found["rules"]] == [False, True]
