"""One bit changed in a file of a run or a comparison: all is right, or it is refused by the file's name."""

import dataclasses

import pytest

from apical.comparison import compare
from apical.training import train
from faults.damage import ended, wrong
from processes import BoomError, boom_at
from training.runs import DIGITS, PAIR, SHORT

CONFIG = dataclasses.replace(SHORT, test_every=5)
NAMES = ("config.json", "metrics.jsonl", "checkpoint/last.ckpt", "result.json")
FLIPS = 3
MANY = pytest.mark.faults
RESUMED = [("compare", "--no-time-steps", "--resume")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run, one that was stopped after a checkpoint, and one that was stopped before the first."""
    home = tmp_path_factory.mktemp("runs")
    train(CONFIG, home / "whole", data=DIGITS)
    for name, limit in (("cut", 33), ("early", 4)):
        with pytest.raises(BoomError):
            train(CONFIG, home / name, data=DIGITS, watcher=boom_at(limit))
    return home


@pytest.mark.parametrize("flips", [FLIPS, pytest.param(100, marks=MANY)])
@pytest.mark.parametrize(
    ("state", "name"),
    [(state, name) for state, last in (("early", 2), ("cut", 3), ("whole", 4)) for name in NAMES[:last]],
)
def test_a_run(runs, capsys, state, name, flips):
    right = ["result.json"]
    # The measurements and the checkpoint of a run that has ended are not read again.
    right += [] if state == "whole" else ["metrics.jsonl", "checkpoint/last.ckpt"]
    if (state, name) == ("early", "config.json"):
        right = []  # Before there is a checkpoint, which knows the config, a changed one is that of another run.
    assert not wrong(capsys, runs / "whole", runs / state, name, [("train", "--resume")], right, flips=flips)


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    """For --replicas on and off: a comparison, and the same stopped amid its runs."""
    home = tmp_path_factory.mktemp("comparisons")
    for replicas in ("on", "off"):
        config = dataclasses.replace(PAIR, rules=("bp", "fa"), replicas=replicas, checkpoint_every=5)
        compare(config, home / replicas / "whole", data=DIGITS)
        calls = []

        def announce(rule, seeds, calls=calls):
            calls.append(rule)
            return boom_at(12) if len(calls) == 2 else lambda *_: None

        with pytest.raises(BoomError):
            compare(config, home / replicas / "cut", data=DIGITS, announce=announce)
    return home


@pytest.mark.parametrize(
    ("replicas", "name", "flips"),
    [
        ("on", "comparison.json", 1),
        ("off", "runs/fa-1/metrics.jsonl", 1),
        *(
            pytest.param(replicas, name, 5, marks=MANY)
            for replicas in ("on", "off")
            for name in ("config.json", "comparison.json", *(f"runs/fa-1/{name}" for name in NAMES))
        ),
    ],
)
def test_a_comparison(comparisons, capsys, replicas, name, flips):
    home = comparisons / replicas
    ended(capsys, "report", home / "whole")
    assert not wrong(capsys, home / "whole", home / "whole", name, RESUMED, ["comparison.json"], flips=flips)
    assert not wrong(capsys, home / "whole", home / "whole", name, [("report",)], ["report.html"], flips=5 * flips)


@pytest.mark.parametrize("flips", [pytest.param(5, marks=MANY)])
@pytest.mark.parametrize(
    ("replicas", "name"),
    [
        ("on", "config.json"),
        ("on", "together/fa/config.json"),
        ("on", "together/fa/checkpoint/last.ckpt"),
        ("on", "runs/fa-0/metrics.jsonl"),
        ("on", "together/bp/result.json"),
        ("off", "config.json"),
        ("off", "runs/fa-0/checkpoint/last.ckpt"),
        ("off", "runs/fa-0/metrics.jsonl"),
        ("off", "runs/bp-0/result.json"),
    ],
)
def test_a_stopped_comparison(comparisons, capsys, replicas, name, flips):
    home = comparisons / replicas
    assert not wrong(capsys, home / "whole", home / "cut", name, RESUMED, ["comparison.json"], flips=flips)
