"""A checkpoint knows the files beside it, and a run that goes on is left alone."""

import dataclasses
import json
import random
import shutil
import threading

import pytest

from apical import papers
from apical.comparison import compare
from apical.files import read_sealed
from apical.papers.reproduce import reproduce
from apical.training import CheckpointError, RunFolder, RunFolderError, TrainConfig, train
from apical.training import checkpoint as checkpoints
from processes import BoomError, boom_at
from training.runs import DIGITS, PAIR, SHORT, TIMELESS, same, weights

CONFIG = dataclasses.replace(SHORT, test_every=5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that was stopped after step 33, its last checkpoint being of step 30, and one that was not."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.raises(BoomError):
        train(CONFIG, home / "cut", data=DIGITS, watcher=boom_at(33))
    train(CONFIG, home / "whole", data=DIGITS)
    return home


def lines(folder):
    return [{**line, **TIMELESS} for line in RunFolder(folder).metrics.read()]


CHANGES = {
    "seed": 7,
    "epochs": 3,
    "batch": 32,
    "learning_rate": 0.1,
    "weight_decay": 0.1,
    "optimizer": "SGD:momentum=0.8",
    "scheduler": "StepLR:step_size=1",
    "activation": "relu",
    "loss": "squared-error",
    "connectivity": 0.5,
    "input_noise": 0.1,
    "test_every": 7,
    "rule": "fa",
    "network": "64-21-10",
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_run_whose_config_was_changed_does_not_go_on(runs, tmp_path, key):
    shutil.copytree(runs / "cut", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    kept = read_sealed(path)
    path.write_text(json.dumps({**kept, key: CHANGES[key]}))
    before = {one: one.read_bytes() for one in (tmp_path / "run").rglob("*") if one.is_file()}
    told = rf"does not fit this run: .*{key}: {kept[key]!r} in the checkpoint, .* in config.json.*put back"
    with pytest.raises(CheckpointError, match=told):
        train(TrainConfig(**{**kept, key: CHANGES[key]}), tmp_path / "run", data=DIGITS, resume=True)
    assert {one: one.read_bytes() for one in (tmp_path / "run").rglob("*") if one.is_file()} == before


def test_runs_side_by_side_whose_config_was_changed_do_not_go_on(tmp_path):
    config = dataclasses.replace(PAIR, rules=("kp",), replicas="on", checkpoint_every=5)
    with pytest.raises(BoomError):
        compare(config, tmp_path / "all", data=DIGITS, announce=lambda rule, seeds: boom_at(12))
    for path in (tmp_path / "all").rglob("config.json"):
        path.write_text(json.dumps({**read_sealed(path), "batch": 32}))
    with pytest.raises(
        CheckpointError, match=r"does not fit these runs: .*batch: 64 in the checkpoint, 32 in config.json"
    ):
        compare(dataclasses.replace(config, batch=32), tmp_path / "all", data=DIGITS, resume=True)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_measurements_are_right_or_refused(runs, tmp_path, seed):
    chance = random.Random(seed)
    shutil.copytree(runs / "cut", tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    content = bytearray(path.read_bytes())
    position = chance.randrange(len(content))
    if seed % 3:
        content[position] ^= 1 << chance.randrange(8)
    else:
        del content[position if seed else 0 :]
    path.write_bytes(content)
    refused = None
    try:
        train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)
    except ValueError as error:
        refused = str(error)
    if refused is None:
        assert lines(tmp_path / "run") == lines(runs / "whole")
    else:
        assert "metrics.jsonl" in refused
        assert "delete the run's folder to start anew" in refused
        assert path.read_bytes() == content


def test_damaged_measurements_of_runs_side_by_side_are_refused(tmp_path):
    config = dataclasses.replace(PAIR, rules=("kp",), replicas="on", checkpoint_every=5)
    with pytest.raises(BoomError):
        compare(config, tmp_path / "all", data=DIGITS, announce=lambda rule, seeds: boom_at(12))
    path = tmp_path / "all" / "runs" / "kp-1" / "metrics.jsonl"
    path.write_text(path.read_text().replace("test_error", "test_errol"))
    with pytest.raises(ValueError, match=r"kp-1/metrics.jsonl: is damaged"):
        compare(config, tmp_path / "all", data=DIGITS, resume=True)


def test_the_last_measurement_before_a_checkpoint_comes_back_from_it(runs, tmp_path):
    shutil.copytree(runs / "cut", tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if json.loads(line)["step"] < 30))
    train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)
    assert lines(tmp_path / "run") == lines(runs / "whole")


def test_a_checkpoint_without_seals_goes_on_as_before(runs, tmp_path):
    shutil.copytree(runs / "cut", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "last.ckpt"
    state, seals = checkpoints.load_all(path)
    assert seals is not None
    assert state.keys() == checkpoints.load(path).keys()
    checkpoints.save(path, state)
    train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)
    assert lines(tmp_path / "run") == lines(runs / "whole")
    assert same(weights(tmp_path / "run"), weights(runs / "whole"))


@pytest.mark.parametrize("step", [1.5, -5, 10**9, None, "3"])
def test_a_checkpoint_of_no_step_of_the_run_is_refused(runs, tmp_path, step):
    shutil.copytree(runs / "cut", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "last.ckpt"
    checkpoints.save(path, {**checkpoints.load(path), "step": step})
    with pytest.raises(CheckpointError, match="does not fit this run"):
        train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)


def test_a_checkpoint_of_nothing_is_refused(tmp_path):
    checkpoints.save(tmp_path / "last.ckpt", None)
    with pytest.raises(CheckpointError, match="holds no state but a NoneType"):
        checkpoints.load(tmp_path / "last.ckpt")


def test_nothing_is_measured_before_all_processes_have_seen_what_was_measured_before(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("lightning_fabric.Fabric.barrier", lambda self, *_: seen.append(lines(tmp_path / "run")))
    train(CONFIG, tmp_path / "run", data=DIGITS)
    assert seen[:2] == [[], []]
    assert len(seen) == 3


class Other(threading.Thread):
    """Something of another holder, tried while a run goes on: what it says."""

    def __init__(self, action):
        super().__init__()
        self.action, self.said = action, None

    def run(self):
        try:
            self.action()
        except Exception as error:
            self.said = error

    def told(self):
        self.start()
        self.join()
        assert isinstance(self.said, RunFolderError), self.said
        return str(self.said)


def test_a_run_going_on_is_neither_resumed_nor_overwritten(tmp_path):
    said = []

    def watcher(step, steps, newest):
        if step == 7:
            for how in ({"resume": True}, {"overwrite": True}, {}):
                said.append(Other(lambda how=how: train(CONFIG, tmp_path / "run", data=DIGITS, **how)).told())

    train(CONFIG, tmp_path / "run", data=DIGITS, watcher=watcher)
    assert all(
        "is going on in another process; wait until it ends, or stop that process first" in one for one in said[:2]
    )
    assert "holds a run already" in said[2]
    assert len(lines(tmp_path / "run")) == 12
    assert sorted(one.name for one in (tmp_path / "run").iterdir()) == [
        "checkpoint",
        "config.json",
        "metrics.jsonl",
        "result.json",
    ]


@pytest.mark.parametrize("replicas", ["on", "off"])
def test_a_comparison_going_on_is_not_resumed_nor_is_a_run_of_it(tmp_path, replicas):
    config, said = dataclasses.replace(PAIR, rules=("kp",), replicas=replicas), []

    def watcher(step, steps, newest):
        if step == 7 and not said:
            said.append(Other(lambda: compare(config, tmp_path / "all", data=DIGITS, resume=True)).told())
            one = tmp_path / "all" / "runs" / "kp-0"
            said.append(Other(lambda: train(config.run("kp", 0), one, data=DIGITS, resume=True)).told())

    compare(config, tmp_path / "all", data=DIGITS, announce=lambda rule, seeds: watcher)
    assert all("is going on in another process" in one for one in said)
    assert not list(tmp_path.rglob(".lock"))


def test_an_experiment_going_on_is_not_resumed(tmp_path):
    said, chosen = [], papers.find("lillicrap2016/fig2a")

    def run(**more):
        return reproduce(chosen, tmp_path / "one", seeds=1, scale=0.01, only=["fa"], **more)

    def watcher(done, steps, note):
        if not said:
            said.append(Other(lambda: run(resume=True)).told())

    run(announce=lambda condition, seeds: watcher)
    assert "is going on in another process" in said[0]


def test_what_a_killed_run_leaves_of_its_lock_stops_nobody(runs, tmp_path):
    shutil.copytree(runs / "cut", tmp_path / "run")
    (tmp_path / "run" / ".lock").touch()
    train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("key", ["alignment", "steps", "predictions"])
def test_a_result_that_lacks_something_is_told(runs, tmp_path, key):
    shutil.copytree(runs / "whole", tmp_path / "run")
    path = tmp_path / "run" / "result.json"
    path.write_text(json.dumps({name: one for name, one in read_sealed(path).items() if name not in (key, "measured")}))
    with pytest.raises(RunFolderError, match=f"it has no {key}; delete its result.json, and resume the run"):
        train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)
    path.unlink()
    assert key in train(CONFIG, tmp_path / "run", data=DIGITS, resume=True)
