"""How commands end: errors of others as one sentence, signals with a checkpoint, and the command that goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from apical.cli import terminal
from apical.cli.command_line import main
from apical.training import RunFolder, TrainConfig, train
from apical.training import checkpoint as checkpoints
from processes import started, wait_for

NET = """
from pathlib import Path
import torch
from torch import nn
class Tired(nn.Module):
    steps = 0
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
    def forward(self, x):
        self.steps += self.training
        if self.steps > 15 and not Path("mended").exists():
            ERROR
        return self.linear(x.flatten(1))
def net():
    return Tired()
"""
SHORT = ("--network", "64-20-10", "--epochs", "1")
PAIR = ("--rules", "fa", "bp", "--seeds", "2", "--no-time-steps")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments, capsys, code):
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    found = capsys.readouterr()
    assert exit.value.code == code, found.err
    assert "Traceback" not in found.err
    return " ".join(found.err.split()), " ".join(found.out.split())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("raise RuntimeError('I am tired')", "RuntimeError: I am tired (DIR/net.py, line 13, in forward)"),
        ("{}['key']", "KeyError: 'key' (DIR/net.py, line 13, in forward)"),
        ("assert False", "AssertionError (DIR/net.py, line 13, in forward)"),
        ("torch.ones(2) @ torch.ones(3)", "(DIR/net.py, line 13, in forward)"),
        ("torch.zeros(1).add_(torch.ones(1), alpha=1e39)", "(DIR/net.py, line 13, in forward)"),
        ("torch.empty(1 << 60)", "there is not enough memory ("),
        ("raise MemoryError", "there is not enough memory; take a smaller network or a smaller batch"),
    ],
)
def test_a_network_that_raises_while_it_trains_is_told_with_the_place_and_the_way_on(error, told, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET.replace("ERROR", error))
    options = ("--network", "net.py:net", "--epochs", "2", "--checkpoint-every", "4", "--folder", "one")
    err, _ = run("train", *options, capsys=capsys, code=1)
    assert told.replace("DIR", str(tmp_path)) in err
    assert (
        "after step 15 of 46 of rule 'fa' with seed 0; once that is mended, go on with: apical train --resume one"
        in err
    )
    assert checkpoints.load(tmp_path / "one" / "checkpoint" / "last.ckpt")["step"] == 12
    (tmp_path / "mended").touch()
    main(["train", "--resume", "one"])
    assert RunFolder("one").result["steps"] == 46


@pytest.mark.parametrize("replicas", ["off", "on"])
def test_a_comparison_whose_network_raises_says_how_it_goes_on(replicas, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET.replace("ERROR", "raise RuntimeError('I am tired')"))
    err, _ = run(
        "compare", "--network", "net.py:net", *PAIR, "--replicas", replicas, "--folder", "all", capsys=capsys, code=1
    )
    assert "RuntimeError: I am tired" in err
    assert "once that is mended, go on with: apical compare --resume all" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--weight-decay", "1e39"),
            "weight_decay must be at most 3.403e+38, the largest number of float32, got 1e+39",
        ),
        (("--learning-rate", "1e300"), "learning_rate must be at most 3.403e+38"),
        (("--input-noise", "1e39"), "input_noise must be at most 3.403e+38"),
        (("--activation-noise", "1e39", "--precision", "bf16-mixed"), "activation_noise must be at most 3.403e+38"),
        (
            ("--optimizer", "Adam", "--learning-rate", "1e38"),
            "optimizer 'Adam' can't be made: value cannot be converted",
        ),
        (("--optimizer", "SGD:weight_decay=1e39"), "optimizer 'SGD:weight_decay=1e39' can't be made"),
        (("--scheduler", "StepLR:step_size=1,gamma=1e300"), "scheduler 'StepLR:step_size=1,gamma=1e300' can't be made"),
        (
            ("--scheduler", "ExponentialLR:gamma=1.5", "--epochs", "999"),
            "scheduler 'ExponentialLR:gamma=1.5' can't be made",
        ),
        (("--network", "64-1000000000-10"), "there is not enough memory (256000000000 bytes were asked for)"),
        (("--seed", "9223372036854775807"), "seed must be at most 10000000000000, got 9223372036854775807"),
    ],
)
def test_numbers_that_nothing_can_compute_with_are_refused_before_anything_is_written(options, told, tmp_path, capsys):
    err, _ = run("train", *SHORT, *options, "--folder", "one", capsys=capsys, code=2)
    assert told in err.replace("│ ", "")
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "--seed", str(2**64)),
        ("compare", "--first-seed", str(10**13 - 1)),
        ("reproduce", "lillicrap2016/fig2a", "--first-seed", str(2**63 - 1)),
    ],
)
def test_a_seed_beyond_all_is_named(command, tmp_path, capsys):
    err, _ = run(*command, capsys=capsys, code=2)
    assert "seed must be at most 99999999999" in err.replace("10000000000000", "9999999999999")
    assert not list(tmp_path.iterdir())


def test_the_largest_seed_is_a_seed(capsys):
    main(["train", *SHORT, "--seed", str(10**13), "--folder", "one"])
    assert "test error" in capsys.readouterr().out


def test_a_schedule_of_endless_epochs_is_tried_in_a_moment(tmp_path, capsys):
    began = time.monotonic()
    options = ("--epochs", "999999999", "--scheduler", "OneCycleLR:max_lr=0.1,total_steps=5000")
    err, _ = run("train", *SHORT, *options, "--folder", "one", capsys=capsys, code=2)
    assert "Tried to step 999999999 times" in err
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("options", [(), ("--replicas", "off"), ("--network", "64-20-10", "--learning-rate", "1e25")])
def test_a_comparison_of_which_all_failed_ends_with_status_1(options, capsys):
    diverging = ("--activation", "relu", "--learning-rate", "1e30", *options)
    err, out = run("compare", *SHORT, *diverging, *PAIR, "--folder", "all", capsys=capsys, code=1)
    assert "apical: error: every run failed, so there is nothing to compare; what they left lies in all" in err
    assert "report: all/report.html" in out
    assert out.count("became") + out.count("test images are") + out.count("is inf") >= 4


def test_a_comparison_of_which_one_failed_is_a_comparison(capsys):
    options = ("--rules", "bp", "shallow", "--seeds", "1", "--activation", "relu", "--learning-rate", "1e25")
    main(["compare", *SHORT, *options, "--no-time-steps", "--folder", "all"])
    assert "failed" in capsys.readouterr().out


SIGNALS = [
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults),
    (signal.SIGTERM, 143),
    pytest.param(signal.SIGHUP, 129, marks=pytest.mark.faults),
]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_leaves_a_checkpoint_and_the_command_that_goes_on(tmp_path, number, status):
    options = ("--epochs", "20000", "--align-every", "0", "--checkpoint-every", "1000000")
    process = started("train", *SHORT[:2], *options, "--folder", "one")
    wait_for(
        lambda: (
            (tmp_path / "one" / "metrics.jsonl").exists()
            and (tmp_path / "one" / "metrics.jsonl").read_text().count("\n") > 1
        ),
        process,
    )
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "stopped at step" in errors
    assert "the run in one can be resumed: apical train --resume one" in errors
    step = checkpoints.load(tmp_path / "one" / "checkpoint" / "last.ckpt")["step"]
    assert f"stopped at step {step} of" in errors
    assert not (tmp_path / "one" / ".lock").exists()


def test_sigterm_between_the_runs_of_a_comparison_says_how_it_goes_on(tmp_path, capsys):
    from apical.cli.compare import Compare

    def ended(self):
        with terminal.resumable("compare", tmp_path / "all"):
            RunFolder(tmp_path / "all").start({"rules": ["fa"]})
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compare, "run", ended)
        err, _ = run("compare", capsys=capsys, code=143)
    assert f"apical: stopped: at once; go on with: apical compare --resume {tmp_path / 'all'}" in err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


@pytest.mark.faults
def test_who_ignores_a_hangup_goes_on_ignoring_it(tmp_path):
    code = (
        "import signal, os, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from apical.training import TrainConfig, train\n"
        "hang = lambda step, steps, newest: os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(train(TrainConfig(network='64-20-10', epochs=1), 'one', watcher=hang)['steps'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "23\n", done.stderr


@pytest.mark.faults
def test_ctrl_c_again_and_again_is_no_traceback(tmp_path):
    options = ("--epochs", "20000", "--align-every", "0", "--checkpoint-every", "1000000", "--folder", "one")
    # No forked one: signals may also meet the end of the interpreter.
    process = subprocess.Popen(
        [sys.executable, "-m", "apical", "train", *SHORT[:2], *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (tmp_path / "one" / "metrics.jsonl").exists(), process)
    for pause in (0, 0.002, 0.01, 0.05, 0.2, 0.2):
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.count("apical: stopped:") <= 1


def test_ctrl_c_while_the_message_is_printed_is_no_traceback(monkeypatch):
    def pressed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal.errors, "print", pressed)
    with pytest.raises(SystemExit) as exit, terminal.plain_errors():
        raise KeyboardInterrupt
    assert exit.value.code == 130


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_stops_at_once_with_its_own_status(number, status, tmp_path):
    def twice(step, steps, newest):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt) as stopped:
        train(TrainConfig(network="64-20-10", epochs=1), tmp_path / "one", watcher=twice)
    assert stopped.value.status == status


@pytest.mark.parametrize("replicas", ["on", "off"])
def test_a_report_of_a_stopped_comparison_says_what_is_missing(replicas, tmp_path, capsys):
    main(["compare", *SHORT, *PAIR, "--replicas", replicas, "--folder", "my runs"])
    (tmp_path / "my runs" / "comparison.json").unlink()
    (tmp_path / "my runs" / "runs" / "bp-1" / "result.json").unlink()
    err, _ = run("report", "my runs", capsys=capsys, code=2)
    assert "of its 4 runs 1 have no result (bp with seed 1); go on with: apical compare --resume 'my runs'" in err
    err, _ = run("report", "my runs/runs/fa-0", capsys=capsys, code=2)
    assert "holds a run of `apical train`" in err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"experiment": "lillicrap2016/fig2a"}))
    assert "holds a run of `apical reproduce`" in run("report", "other", capsys=capsys, code=2)[0]
