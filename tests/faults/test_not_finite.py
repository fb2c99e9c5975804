"""A network that has become infinite or not a number is no result: its run fails, with the step."""

import dataclasses

import pytest
import torch

from apical.comparison import compare
from apical.training import CompareConfig, NonFiniteLossError, RunFolder, TrainConfig, train
from apical.training.session import Session
from training.runs import DIGITS

ONE_STEP = {"epochs": 1, "batch": 1442, "network": "64-20-10"}
NET = """
import torch
from torch import nn
class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mask", torch.full((3,), -torch.inf))
    def forward(self, x):
        self.seen += self.training
        return self.linear(x.flatten(1)) * BAD
def nets():
    return nn.Sequential(Late())
def normalized():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Linear(20, 10))
    net[2].running_mean.fill_(torch.nan)
    return net
def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), Blow(), nn.Linear(20, 10))
class Blow(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
    def forward(self, x):
        self.seen += self.training
        return x * (1 if self.seen else torch.inf)
"""


def net(tmp_path, name, bad="1"):
    path = tmp_path / "net.py"
    path.write_text(NET.replace("BAD", bad))
    return f"{path}:{name}"


@pytest.mark.parametrize("rule", ["fa", "kp", "shallow", "bp"])
def test_a_last_step_that_leaves_nothing_finite_fails(tmp_path, rule):
    config = TrainConfig(rule=rule, learning_rate=1e38, **ONE_STEP)
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(epoch 1\) of rule '.*' with seed 0; a smaller learning"):
        train(config, tmp_path / "run", data=DIGITS)
    assert RunFolder(tmp_path / "run").result is None
    assert [line["step"] for line in RunFolder(tmp_path / "run").metrics.read()] == [0]


def test_outputs_that_are_nan_in_the_test_alone_fail(tmp_path):
    config = TrainConfig(epochs=1, network=net(tmp_path, "normalized"))
    with pytest.raises(NonFiniteLossError, match=r"outputs for 355 of 355 test images are nan at step 0"):
        train(config, tmp_path / "run", data=DIGITS)
    assert not RunFolder(tmp_path / "run").metrics.read()


@pytest.mark.parametrize(("value", "word"), [("nan", "nan"), ("inf", "infinite")])
def test_outputs_of_a_later_test_fail(tmp_path, value, word):
    bad = f"(torch.{value} if self.seen > 40 and not self.training else 1)"
    config = TrainConfig(epochs=3, network=net(tmp_path, "nets", bad))
    with pytest.raises(
        NonFiniteLossError, match=rf"outputs for 355 of 355 test images are {word} at step 46 \(epoch 2\)"
    ):
        train(config, tmp_path / "run", data=DIGITS)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("rule", ["fa", "dfa", "wm"])
def test_weights_and_feedback_that_no_output_shows_fail(tmp_path, monkeypatch, rule, value):
    networks = []
    original = Session.__init__

    def kept(self, one, *rest):
        networks.append(one)
        original(self, one, *rest)

    def planted(step, steps, newest):
        if step == 23:
            synapse = networks[0].learner.model.get_submodule("1")
            with torch.no_grad():
                # The unit saturates, and tells nobody; feedback takes no part in the last test at all.
                (synapse.bias if value == torch.inf else networks[0].learner.synapses["3"].feedback).view(-1)[3] = value

    monkeypatch.setattr(Session, "__init__", kept)
    config = TrainConfig(epochs=2, network="64-20-10", rule=rule, test_every=24, align_every=0)
    with pytest.raises(NonFiniteLossError, match="weights are infinite or nan at step 24"):
        train(config, tmp_path / "run", data=DIGITS, watcher=planted)


@pytest.mark.parametrize("change", [{}, {"network": "64-20-20-10", "rule": "dfa"}, {"loss": "squared-error"}])
def test_where_losses_are_not_looked_at_as_on_a_gpu_the_end_is_no_result(tmp_path, monkeypatch, change):
    monkeypatch.setattr(Session, "_check", lambda self, losses: None)
    config = TrainConfig(**{"epochs": 1, "network": "64-20-10", "learning_rate": 1e25, "activation": "relu", **change})
    with pytest.raises(NonFiniteLossError, match=r"at step 23 \(epoch 1\)"):
        train(config, tmp_path / "run", data=DIGITS)


def test_a_loss_that_was_infinite_between_two_tests_is_seen_at_the_next(tmp_path, monkeypatch):
    original = Session._check
    monkeypatch.setattr(Session, "_check", lambda self, losses: None)
    bad = "1 + (1e25 if self.training and self.seen == 5 else 0)"
    config = TrainConfig(
        epochs=1,
        network=net(tmp_path, "nets", bad),
        loss="squared-error",
        learning_rate=1e-30,
        optimizer="SGD",
        rule="bp",
    )
    with pytest.raises(NonFiniteLossError, match=r"loss became inf since the last test, seen at step 23"):
        train(config, tmp_path / "run", data=DIGITS)
    monkeypatch.setattr(Session, "_check", original)
    with pytest.raises(NonFiniteLossError, match=r"loss became inf at step 5"):
        train(config, tmp_path / "other", data=DIGITS)


def test_outputs_may_be_infinite_before_the_first_step_alone(tmp_path):
    config = TrainConfig(epochs=1, network=net(tmp_path, "wide"))
    with pytest.warns(UserWarning, match="test images are nan before the first step, so nothing is measured there"):
        result = train(config, tmp_path / "run", data=DIGITS)
    assert [line["step"] for line in RunFolder(tmp_path / "run").metrics.read()] == [23]
    assert result["test_error"] < 60


@pytest.mark.parametrize("replicas", ["on", "off"])
@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e38, **ONE_STEP},
        {"epochs": 1, "network": "64-20-10", "activation": "identity", "weight_decay": 1e10},
    ],
)
def test_runs_of_a_comparison_fail_alike(tmp_path, replicas, change):
    config = CompareConfig(rules=("fa", "bp"), seeds=2, replicas=replicas, **change)
    found = compare(config, tmp_path / "all", data=DIGITS)
    assert all(" at step " in run["failed"] for run in found["runs"])
    assert [row["test_error_mean"] for row in found["table"]] == [None, None]
    assert not list((tmp_path / "all" / "runs").rglob("result.json"))
    again = compare(config, tmp_path / "all", data=DIGITS, resume=True)["runs"]

    def timeless(runs):  # Runs that failed are made again, and their measurements hold times.
        return [{key: value for key, value in run.items() if key != "measured"} for run in runs]

    assert timeless(again) == timeless(found["runs"])


def test_one_copy_that_fails_at_the_last_test_leaves_the_others(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Linear(20, 10))\n"
        "    if torch.initial_seed() == 1:\n"
        "        net[1].weight.data *= 1e20\n"
        "    return net\n"
    )
    config = CompareConfig(
        rules=("bp",), seeds=3, replicas="on", epochs=1, batch=1442, network=f"{path}:make", optimizer="SGD"
    )
    found = compare(config, tmp_path / "all", data=DIGITS)
    alone = compare(dataclasses.replace(config, replicas="off"), tmp_path / "alone", data=DIGITS)
    assert (
        [("failed" in run) for run in found["runs"]]
        == [("failed" in run) for run in alone["runs"]]
        == [False, True, False]
    )
    assert " at step 1 " in found["runs"][1]["failed"]
