"""All seeds of a rule in one pass against runs one by one."""

import dataclasses
import itertools
import json

import pytest

from apical.comparison import compare
from apical.training import RunFolder, TrainConfig, train
from processes import BoomError, boom_at
from training.runs import DIGITS
from training.together import BY_LOSSES, FEW, RULES, SHORT, close, identical, last, told, watch

CHANGES = {
    "sgd": {"optimizer": "SGD:momentum=0.9", "scheduler": "StepLR:step_size=1"},
    "adam": {"optimizer": "Adam", "weight_decay": 0.01, "connectivity": 0.5, "whole_output": True},
    "rmsprop": {
        "optimizer": "RMSprop:momentum=0.5,eps=1e-3",
        "loss": "squared-error",
        "align_every": 4,
        "test_every": 5,
    },
}
TOLERANCES = {"32-true": 1e-5, "64-true": 1e-10}
SOME = ("fa", "kp", "kp-direct", "wm")


@pytest.mark.parametrize(
    ("change", "precision", "rules"),
    [
        ("adam", "64-true", (*RULES, *BY_LOSSES)),
        ("sgd", "64-true", SOME),
        ("rmsprop", "32-true", SOME),
        *(
            pytest.param(
                change, precision, (*RULES, *BY_LOSSES) if precision == "64-true" else RULES, marks=pytest.mark.slow
            )
            for change, precision in itertools.product(CHANGES, TOLERANCES)
        ),
    ],
)
def test_seeds_learn_what_they_would_alone(tmp_path, precision, rules, change):
    tolerance = TOLERANCES[precision]
    config = dataclasses.replace(SHORT, rules=rules, precision=precision, seeds=2, first_seed=4, **CHANGES[change])
    found = compare(config, tmp_path / "together", data=FEW)
    assert all(rule["together"] for rule in found["rules"])
    assert [(run["rule"], run["seed"]) for run in found["runs"]] == [(r, s) for s in (4, 5) for r in rules]
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


def test_a_group_says_which_seeds_it_trains(tmp_path):
    told = []
    compare(SHORT, tmp_path / "all", data=DIGITS, announce=lambda rule, seeds: told.append((rule, *seeds)) or watch)
    assert told == [("kp", 0, 1, 2), ("dfa", 0, 1, 2)]
