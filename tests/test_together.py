"""All seeds of a rule in one pass against runs one by one."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from apical import data as images
from apical.comparison import compare
from apical.comparison.choice import obstacle, pays
from apical.data import ImageData, Split
from apical.training import CompareConfig, RunFolder, TrainConfig, train
from apical.training import checkpoint as checkpoints
from processes import BoomError, boom_at, killed_and_resumed, started, wait_for

DIGITS = images.load()
FEW = ImageData(
    "few",
    Split(DIGITS.train.images[:330], DIGITS.train.labels[:330]),
    Split(DIGITS.test.images[:100], DIGITS.test.labels[:100]),
    10,
    DIGITS.class_names,
)
RULES = ("bp", "fa", "dfa", "kp", "usf", "shallow", "urfb:epsilon=0.5", "wm", "brsf", "kp-direct")
BY_LOSSES = ("np", "sg", "reinforce")
"""They divide differences of losses by the noise, and so rounding; with 64-true that of the float32 outputs Fabric hands back."""
SHORT = CompareConfig(rules=("kp", "dfa"), seeds=3, epochs=2, network="64-20-10", checkpoint_every=7, replicas="on")


def last(folder):
    return checkpoints.load(Path(folder) / "checkpoint" / "last.ckpt")


def flat(value, path=()):
    """Every tensor and number of a nested state, by its place."""
    if isinstance(value, dict):
        return {place: one for key, inner in value.items() for place, one in flat(inner, (*path, key)).items()}
    if isinstance(value, list | tuple):
        return {place: one for key, inner in enumerate(value) for place, one in flat(inner, (*path, key)).items()}
    return {path: value}


def close(mine, its, tolerance):
    """States are alike: numbers to `tolerance`, everything else exactly."""
    mine, its = flat(mine), flat(its)
    assert mine.keys() == its.keys()
    for place, one in mine.items():
        if "seconds" in place:
            continue
        if torch.is_tensor(one) and one.is_floating_point():
            torch.testing.assert_close(one, its[place], rtol=tolerance, atol=tolerance)
        elif torch.is_tensor(one):
            assert torch.equal(one, its[place]), place
        elif isinstance(one, float):
            assert one == pytest.approx(its[place], rel=tolerance, abs=tolerance), place
        else:
            assert one == its[place], place


def identical(mine, its):
    mine, its = flat(mine), flat(its)
    assert mine.keys() == its.keys()
    for place, one in mine.items():
        if "seconds" not in place and "step_ms" not in place:
            assert torch.equal(one, its[place]) if torch.is_tensor(one) else one == its[place], place


def told(run):
    """A run's metrics and result."""
    return {"metrics": run.metrics.read(), **(run.result or {}), "step_ms": 0, "seconds": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "SGD:momentum=0.9", "scheduler": "StepLR:step_size=1"},
        {"optimizer": "Adam", "weight_decay": 0.01, "connectivity": 0.5, "whole_output": True},
        {"optimizer": "RMSprop:momentum=0.5,eps=1e-3", "loss": "squared-error", "align_every": 4, "test_every": 5},
    ],
    ids=["sgd", "adam", "rmsprop"],
)
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-10)])
def test_seeds_learn_what_they_would_alone(tmp_path, precision, tolerance, change):
    rules = RULES if precision == "32-true" else (*RULES, *BY_LOSSES)
    config = dataclasses.replace(SHORT, rules=rules, precision=precision, first_seed=4, **change)
    found = compare(config, tmp_path / "together", data=FEW)
    assert all(rule["together"] for rule in found["rules"])
    assert [(run["rule"], run["seed"]) for run in found["runs"]] == [(r, s) for s in (4, 5, 6) for r in rules]
    for run in found["runs"]:
        alone = tmp_path / "alone" / run["folder"]
        train(config.run(run["rule"], run["seed"]), alone, data=FEW)
        together = tmp_path / "together" / run["folder"]
        close(last(together), last(alone), 1e-6 if run["rule"] in BY_LOSSES else tolerance)
        mine, its = RunFolder(together), RunFolder(alone)
        # Fabric hands the outputs of a 64-true model back as float32.
        close(told(mine), told(its), max(tolerance, 1e-6) if precision == "64-true" else 1e-3)
        assert [line["test_error"] for line in mine.metrics.read()] == [
            line["test_error"] for line in its.metrics.read()
        ]
        assert TrainConfig(**json.loads((together / "config.json").read_text())) == config.run(run["rule"], run["seed"])


def test_convolutions_and_batch_norm_learn_what_they_would_alone(tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))\n"
    )
    config = dataclasses.replace(SHORT, network=f"{net}:make", epochs=1, precision="64-true", optimizer="SGD")
    for run in compare(config, tmp_path / "together", data=FEW)["runs"]:
        alone = tmp_path / "alone" / run["folder"]
        train(config.run(run["rule"], run["seed"]), alone, data=FEW)
        close(last(tmp_path / "together" / run["folder"]), last(alone), 1e-10)


def test_runs_of_a_group_are_runs_like_others(tmp_path):
    found = compare(SHORT, tmp_path / "all", data=FEW)
    run = found["runs"][0]
    again = train(SHORT.run(run["rule"], run["seed"]), tmp_path / "all" / run["folder"], data=FEW, resume=True)
    assert again == RunFolder(tmp_path / "all" / run["folder"]).result
    size = (tmp_path / "all" / run["folder"] / "checkpoint" / "last.ckpt").stat().st_size
    train(SHORT.run(run["rule"], run["seed"]), tmp_path / "alone", data=FEW)
    # No copy's checkpoint holds the others' numbers.
    assert size < 1.1 * (tmp_path / "alone" / "checkpoint" / "last.ckpt").stat().st_size
    assert not list((tmp_path / "all" / "together").rglob("last.ckpt"))


# Interruption ---------------------------------------------------------------------------------------------------------


def compared(mine, its):
    runs = sorted(path.relative_to(mine) for path in mine.glob("runs/*"))
    assert runs == sorted(path.relative_to(its) for path in its.glob("runs/*"))
    for run in runs:
        identical(last(mine / run), last(its / run))
        identical(told(RunFolder(mine / run)), told(RunFolder(its / run)))


@pytest.mark.parametrize("rules", [("kp", "dfa"), ("wm", "brsf"), ("kp-direct", "shallow")])
def test_a_comparison_that_stops_and_resumes_ends_bit_identical(tmp_path, rules):
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

    for attempt, limit in enumerate((3, 14, 11, 20, 30, 1)):
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


def start(folder, *more):
    options = ["--rules", "kp", "usf", "--seeds", "3", "--network", "64-30-10", "--no-time-steps"]
    return started(
        "compare", *options, "--checkpoint-every", "7", "--align-every", "500", "--folder", str(folder), *more
    )


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_comparison_killed_at_random_moments_ends_bit_identical(tmp_path, kills):
    epochs = 50 + 25 * kills  # Enough that no start comes to the end.
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
    RunFolder(home).start(json.loads(json.dumps(dataclasses.asdict(config))))
    train(config.run("kp", 0), home / "runs" / "kp-0", data=DIGITS)
    found = compare(config, home, data=DIGITS, resume=True)
    assert [rule["together"] for rule in found["rules"]] == [False, True]


# Failures -------------------------------------------------------------------------------------------------------------


def test_a_copy_that_fails_is_told_and_the_others_go_on_unharmed(tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Linear(20, 10))\n"
        "    if torch.initial_seed() == 1:\n"
        "        net[1].weight.data *= 30\n"
        "    return net\n"
    )
    config = dataclasses.replace(
        SHORT, rules=("bp", "usf"), network=f"{net}:make", loss="squared-error", optimizer="SGD"
    )
    found = compare(config, tmp_path / "together", data=FEW)
    alone = compare(dataclasses.replace(config, replicas="off"), tmp_path / "alone", data=FEW)
    assert [("failed" in run, run["seed"]) for run in found["runs"]] == [(s == 1, s) for s in (0, 0, 1, 1, 2, 2)]
    for mine, its in zip(found["runs"], alone["runs"], strict=True):
        # With the same words, so at the same step; whether a sum overflows to inf or nan is rounding.
        assert json.dumps(mine).replace("became nan", "became inf") == json.dumps(its).replace(
            "became nan", "became inf"
        )
        a, b = RunFolder(tmp_path / "together" / mine["folder"]), RunFolder(tmp_path / "alone" / its["folder"])
        assert len(a.metrics.read()) == len(b.metrics.read())
        if "failed" in mine:
            assert a.result is None
            assert "at step 1 " not in mine["failed"]
        else:
            close(last(a.path), last(b.path), 1e-5)
    assert found["table"][0]["runs"] == 2
    again = compare(config, tmp_path / "together", data=FEW, resume=True)
    assert again["runs"] == found["runs"]

    with pytest.raises(BoomError):
        compare(config, tmp_path / "cut", data=FEW, announce=lambda rule, seeds: boom_at(8))
    assert compare(config, tmp_path / "cut", data=FEW, resume=True)["runs"] == found["runs"]
    for mine in found["runs"]:
        if "failed" not in mine:
            identical(last(tmp_path / "cut" / mine["folder"]), last(tmp_path / "together" / mine["folder"]))


def test_when_all_copies_fail_the_next_rule_goes_on(tmp_path):
    config = dataclasses.replace(SHORT, rules=("bp", "shallow"), learning_rate=1e25, activation="relu")
    found = compare(config, tmp_path / "all", data=DIGITS)
    assert all("loss became" in run["failed"] for run in found["runs"] if run["rule"] == "bp")
    assert found["table"][0]["test_error_mean"] is None


# The choice -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        ("np-direct", {}, "compares losses of whole networks"),
        ("fa", {"seeds": 1}, "one seed only"),
        ("fa", {"precision": "bf16-mixed"}, "precision bf16-mixed"),
        ("fa", {"optimizer": "Adafactor"}, "Adafactor looks at more than one weight"),
        ("fa", {"input_noise": 0.1}, "drawn for all copies alike"),
        ("fa", {"activation_noise": 0.1}, "drawn for all copies alike"),
    ],
)
def test_what_can_not_go_together_is_told_before_anything_is_written(tmp_path, rule, change, message):
    config = dataclasses.replace(SHORT, rules=("bp", rule), **change)
    with pytest.raises(
        ValueError, match=rf"(?s)one pass, and that can't be had.*- {rule}: .*{message}.*replicas='auto'"
    ):
        compare(config, tmp_path / "all", data=DIGITS)
    assert not (tmp_path / "all").exists()


def test_dropout_and_layers_that_mix_channels_go_one_by_one(tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def dropping():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(), nn.Linear(9, 10))\n"
        "def mixing():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.LayerNorm(9), nn.Linear(9, 10))\n"
    )
    for name, message in (("dropping", "draws random numbers"), ("mixing", "LayerNorm mixes channels")):
        config = dataclasses.replace(SHORT, network=f"{net}:{name}", rules=("fa",), epochs=1, replicas="auto", seeds=2)
        reason = obstacle(config.run("fa", 0), 2, DIGITS)
        assert reason is not None
        assert message in reason
        assert not compare(config, tmp_path / name, data=DIGITS)["rules"][0]["together"]


def test_auto_takes_together_what_it_can(tmp_path):
    config = dataclasses.replace(SHORT, rules=("np-direct", "kp"), seeds=2, epochs=1, replicas="auto")
    found = compare(config, tmp_path / "auto", data=DIGITS)
    assert [rule["together"] for rule in found["rules"]] == [False, True]
    found = compare(dataclasses.replace(config, replicas="off"), tmp_path / "off", data=DIGITS)
    assert [rule["together"] for rule in found["rules"]] == [False, False]


def test_large_networks_go_one_by_one():
    config = SHORT.run("fa", 0)
    for network, batch, expected in (
        ("64-100-50-10", 64, True),
        ("64-1000-1000-10", 64, False),
        ("64-100-50-10", 10_000, False),
    ):
        assert pays(dataclasses.replace(config, network=network, batch=batch), DIGITS) is expected


def test_a_group_says_which_seeds_it_trains(tmp_path):
    told = []
    compare(SHORT, tmp_path / "all", data=DIGITS, announce=lambda rule, seeds: told.append((rule, *seeds)) or watch)
    assert told == [("kp", 0, 1, 2), ("dfa", 0, 1, 2)]


def watch(step, steps, newest):
    assert newest["test_error"] >= 0


def test_replicas_is_checked():
    with pytest.raises(ValueError, match="replicas must be 'auto', 'on' or 'off', got 'yes'"):
        dataclasses.replace(SHORT, replicas="yes")
