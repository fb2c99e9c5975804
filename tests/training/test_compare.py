"""Comparisons: runs, their table, and what becomes of a failed or stopped one."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from apical.cli.compare import table
from apical.comparison import compare
from apical.report.comparison import page
from apical.training import (
    CompareConfig,
    Interrupted,
    RunFolder,
)
from training.runs import DIGITS, PAIR, weights


def test_every_rule_of_one_seed_has_the_same_forward_connections(tmp_path):
    config = CompareConfig(rules=("bp", "fa", "dfa"), seeds=1, epochs=1, network="64-20-10", connectivity=0.3)
    compare(config, tmp_path / "all", data=DIGITS)
    states = [weights(tmp_path / "all" / "runs" / f"{rule}-0") for rule in config.rules]
    for name in (name for name in states[0] if name.endswith("weight_mask")):
        assert all(torch.equal(state[name], states[0][name]) for state in states)
        assert float(states[0][name].mean()) == pytest.approx(0.3, abs=0.1)


def test_a_comparison_and_its_table(tmp_path):
    found = compare(
        PAIR, tmp_path / "all", data=DIGITS, time_steps=lambda config, data: {"bp": 1.0, "fa": 1.1, "usf": 1.2}
    )
    assert json.loads((tmp_path / "all" / "comparison.json").read_text()) == found
    errors = [
        RunFolder(tmp_path / "all" / run["folder"]).result["test_error"] for run in found["runs"] if run["rule"] == "fa"
    ]
    row = next(row for row in found["table"] if row["rule"] == "fa")
    assert row["test_error_mean"] == pytest.approx(np.mean(errors))
    assert row["test_error_sem"] == pytest.approx(np.std(errors, ddof=1) / np.sqrt(2))
    assert (row["transported"], row["step_ratio"]) == ("nothing", 1.1)
    assert [row["transported"] for row in found["table"]] == ["weights", "nothing", "signs"]
    assert found["table"][0]["angles"] == {"1": 0.0, "3": 0.0}
    samples = found["samples"]
    assert len(samples["labels"]) == len(samples["predictions"]["fa"]) == len(samples["images"]) == 24
    assert np.shape(samples["images"]) == (24, 8, 8)


def test_a_network_that_can_not_be_audited_is_compared(tmp_path):
    nets = tmp_path / "nets.py"
    nets.write_text(
        "from torch import nn\n"
        "def dead():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))\n"
        "    nn.init.constant_(net[1].bias, -1e3)\n"
        "    return net\n"
    )
    config = dataclasses.replace(PAIR, rules=("bp",), seeds=1, network=f"{nets}:dead")
    found = compare(config, tmp_path / "all", data=DIGITS)
    assert (found["table"][0]["transported"], found["table"][0]["runs"]) == ("", 1)
    shown = io.StringIO()
    Console(file=shown, width=120).print(table(found))
    assert "not audited" in shown.getvalue()
    assert "not audited" in page.write(tmp_path / "all").read_text()


def test_rules_of_one_seed_start_from_the_same_weights(tmp_path):
    compare(PAIR, tmp_path / "all", data=DIGITS)
    first = {}
    for rule in PAIR.rules:
        for seed in (0, 1):
            line = RunFolder(tmp_path / "all" / "runs" / f"{rule}-{seed}").metrics.read()[0]
            first[rule, seed] = line["test_loss"]
    assert first["bp", 0] == first["fa", 0] == first["usf", 0] != first["bp", 1]


def test_a_comparison_that_was_stopped_goes_on(tmp_path):
    done = []

    def announce(rule, seeds):
        done.append((rule, seeds))
        if len(done) == 2:
            raise Interrupted("planted")
        return lambda *_: None

    with pytest.raises(Interrupted):
        compare(PAIR, tmp_path / "all", data=DIGITS, announce=announce)
    assert not (tmp_path / "all" / "comparison.json").exists()
    found = compare(PAIR, tmp_path / "all", data=DIGITS, resume=True)
    whole = compare(PAIR, tmp_path / "whole", data=DIGITS)
    assert found["table"] == whole["table"]


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path):
    config = CompareConfig(
        rules=("bp", "shallow"), seeds=1, epochs=1, network="64-20-10", learning_rate=1e25, activation="relu"
    )
    found = compare(config, tmp_path / "all", data=DIGITS)
    assert "loss became" in found["runs"][0]["failed"]
    assert found["table"][0]["test_error_mean"] is None
