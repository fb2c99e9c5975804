"""Runs take their steps by a graph where there can be one, and are the same runs."""

from __future__ import annotations

import json

import pytest
import torch

from apical.comparison import compare
from apical.training import CompareConfig, RunFolder, TrainConfig, train
from apical.training import checkpoint as checkpoints
from cuda_graphs.emulated import Emulated
from processes import BoomError, boom_at
from training.runs import DIGITS


@pytest.fixture
def graphs(monkeypatch):
    """The graphs of all runs, as if these were on a GPU."""
    made: list[Emulated] = []

    def graphs_for(device):
        made.append(Emulated())
        return made[-1]

    monkeypatch.setattr("apical.training.setup.graphs_for", graphs_for)
    return made


def state(folder):
    found = checkpoints.load(folder / "checkpoint" / "last.ckpt")
    return {key: value for key, value in found.items() if key != "seconds"}


def alike(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    return all(map(alike, a, b)) if isinstance(a, list) else a == b


CONFIG = TrainConfig(network="64-20-10", epochs=3, scheduler="StepLR:step_size=1,gamma=0.5", test_every=20)


@pytest.mark.parametrize("options", [{"rule": "kp"}, {"rule": "np"}, {"rule": "wm", "input_noise": 0.1}])
def test_a_run_by_a_graph_is_the_run(tmp_path, graphs, options):
    config = TrainConfig(**{**CONFIG.asdict(), **options})
    result = train(config, tmp_path / "graph", data=DIGITS)
    expected = train(config, tmp_path / "eager", data=DIGITS, captured=False)
    (only,) = graphs
    # One graph for each learning rate; the last batch of an epoch is smaller.
    assert (only.recorded, only.replayed) == (3, 3 * 22 - 3)
    assert result["predictions"] == expected["predictions"]
    assert alike(state(tmp_path / "graph"), state(tmp_path / "eager"))
    assert json.loads((tmp_path / "graph" / "config.json").read_text()) == config.asdict()


def test_a_graph_is_made_once_the_learning_rate_has_grown(tmp_path, graphs):
    options = {
        "warmup_epochs": 1,
        "accumulate": 3,
        "clip": 0.1,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "decayed": "weights",
    }
    config = TrainConfig(network="64-20-10", rule="kp", epochs=2, weight_decay=0.1, **options)
    result = train(config, tmp_path / "graph", data=DIGITS)
    expected = train(config, tmp_path / "eager", data=DIGITS, captured=False)
    assert [(one.recorded, one.replayed) for one in graphs] == [(1, 19)]
    assert result["predictions"] == expected["predictions"]
    assert alike(state(tmp_path / "graph"), state(tmp_path / "eager"))


@pytest.mark.parametrize("scheduler", [None, "StepLR:step_size=1,gamma=0.5"])
def test_one_graph_follows_a_rate_that_falls_step_by_step(tmp_path, graphs, scheduler):
    options = {"warmup_epochs": 0.5, "cooldown_epochs": 1.5, "bias_rate": 4.0, "decayed": "weights", "ema": 0.9}
    config = TrainConfig(network="64-20-10", rule="kp", epochs=2, weight_decay=0.1, scheduler=scheduler, **options)
    train(config, tmp_path / "graph", data=DIGITS)
    expected = train(config, tmp_path / "eager", data=DIGITS, captured=False)
    assert [(one.recorded, one.replayed) for one in graphs] == [(1, 2 * 22 - 3)]
    found, plain = state(tmp_path / "graph"), state(tmp_path / "eager")
    for name, value in plain["model"].items():  # PyTorch's fused SGD rounds in another order.
        torch.testing.assert_close(found["model"][name], value, rtol=1e-4, atol=1e-5)
    lines = [RunFolder(tmp_path / one).metrics.read() for one in ("graph", "eager")]
    assert [one["learning_rate"] for one in lines[0]] == pytest.approx([one["learning_rate"] for one in lines[1]])
    assert expected["steps"] == 46


def test_a_run_by_a_graph_with_a_falling_rate_resumes_bit_identical(tmp_path, graphs):
    config = TrainConfig(network="64-20-10", rule="kp", epochs=2, cooldown_epochs=2, weight_decay=0.1)
    train(config, tmp_path / "whole", data=DIGITS)
    with pytest.raises(BoomError):
        train(config, tmp_path / "cut", data=DIGITS, watcher=boom_at(30))
    train(config, tmp_path / "cut", data=DIGITS, resume=True)
    assert alike(state(tmp_path / "whole"), state(tmp_path / "cut"))


def test_what_cannot_be_captured_runs_as_it_is_and_says_nothing(tmp_path, graphs):
    config = TrainConfig(rule="brsf", network="64-20-10", epochs=1)
    train(config, tmp_path / "run", data=DIGITS)
    assert [one.recorded for one in graphs] == [0]


def test_mixed_precision_is_captured(graphs, tmp_path):
    config = TrainConfig(network="64-20-10", epochs=1, precision="bf16-mixed")
    train(config, tmp_path / "run", data=DIGITS)
    assert [one.recorded for one in graphs] == [1]


def test_comparisons_have_one_graph_for_all_seeds_of_a_rule(tmp_path, graphs):
    config = CompareConfig(rules=("bp", "wm"), seeds=2, epochs=2, network="64-20-10")
    found = compare(config, tmp_path / "graph", data=DIGITS)
    assert [one.recorded for one in graphs] == [1, 1]
    expected = compare(config, tmp_path / "eager", data=DIGITS, captured=False)
    assert [row["test_error_mean"] for row in found["table"]] == [row["test_error_mean"] for row in expected["table"]]
