"""What users, runs and checkpoints rely on, collected from the package as it is; `test_public` compares it with public.json.

`python tests/house/public.py` writes public.json anew: what is added is listed so, and what is gone shows in the diff.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import apical
from apical.cli.command_line import main
from apical.training import CompareConfig, RunFolder, TrainConfig, compare, train
from apical.training.options import rule_of

LIST = Path(__file__).with_name("public.json")
RESULTS = Path(__file__).parents[2] / "docs" / "results"
MODULES = ("papers", "plasticity", "measures", "networks", "data", "training", "report", "parallel")
LEARNER = (
    *(
        "model",
        "rules",
        "rule",
        "synapses",
        "blocks",
        "connectivity",
        "generator",
        "adapted",
        "copies",
        "adapt",
        "refresh",
        "detach",
    ),
    *("state_dict", "load_state_dict", "forward_parameters", "feedback_parameters"),
)
RULES = (*apical.rules(), "np:solver=ridge")


def names() -> dict[str, list[str]]:
    """Module -> the names that it exports."""
    exports = {
        "apical": sorted(apical.__all__),
        "apical.Learner": [one for one in LEARNER if hasattr(learner("kp"), one)],
    }
    for name in MODULES:
        exports[f"apical.{name}"] = sorted(importlib.import_module(f"apical.{name}").__all__)
    losses = importlib.import_module("apical.losses")
    own = [name for name, value in vars(losses).items() if getattr(value, "__module__", "") == losses.__name__]
    exports["apical.losses"] = sorted(name for name in (*own, "LOSSES") if not name.startswith("_"))
    return exports


def words() -> dict[str, list[str]]:
    """Command -> the options that its help names; "" for the commands themselves."""
    commands = re.search(r"{(.*?)}", _help("--help"))[1].split(",")
    found = {"": sorted(commands)}
    for command in commands:
        starts = re.findall(r"^[│ ] ((?:--?[a-z][\w-]*(?:, )?)+)", _help(command, "--help"), re.MULTILINE)
        found[command] = sorted({word for start in starts for word in start.split(", ")})
    return found


def _help(*arguments: str) -> str:
    text = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "200", "NO_COLOR": "1"})
    with wide, contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main(list(arguments))
    return text.getvalue()


def learner(rule: str) -> apical.Learner:
    """A small network under `rule`, thinned by half, that has learned once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    x = torch.randn(6, 4)
    fractions = apical.Connectivity(weight=0.5) if "ridge" in rule else 0.5
    made = apical.attach(net, rule_of(rule), example_input=x, connectivity=fractions)
    loss = nn.CrossEntropyLoss()
    loss(net(x), torch.arange(6) % 3).backward()
    made.adapt(x, torch.arange(6) % 3, lambda y, t: nn.functional.cross_entropy(y, t, reduction="none"))
    return made


def keys(value: Any, path: str = "") -> Iterator[str]:
    """The keys of nested dicts and lists, as paths."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield f"{path}.{key}".lstrip(".")
            yield from keys(below, f"{path}.{key}")
    elif isinstance(value, list):
        for below in value:
            yield from keys(below, f"{path}[]")


def states() -> dict[str, dict[str, list[str]]]:
    """Rule -> keys of the model's state and of the learner's."""
    made = {rule: learner(rule) for rule in RULES}
    return {
        rule: {"model": sorted(one.model.state_dict()), "learner": sorted(one.state_dict())}
        for rule, one in made.items()
    }


def files() -> dict[str, list[str]]:
    """File of a run or a comparison, or "docs/results" -> the keys in it."""
    found: dict[str, set[str]] = {"docs/results": set()}
    for file in RESULTS.glob("*/*.json"):
        found["docs/results"] |= set(keys(json.loads(file.read_text())))
    with tempfile.TemporaryDirectory() as folder:
        run, both = Path(folder) / "run", Path(folder) / "both"
        train(TrainConfig(rule="kp", network="64-10-10", epochs=1), run)
        compare(CompareConfig(rules=("bp", "kp"), network="64-10-10", epochs=1, seeds=1), both)
        state = RunFolder(run).restore()
        found["last.ckpt"] = set(state)
        for file in (run / "config.json", run / "result.json", both / "config.json", both / "comparison.json"):
            found[file.relative_to(folder).as_posix()] = set(keys(json.loads(file.read_text())))
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found["metrics.jsonl"] = {key for line in lines for key in keys(json.loads(line))}
    return {name: sorted(some) for name, some in found.items()}


COLLECTED = {"names": names, "words": words, "states": states, "files": files}

if __name__ == "__main__":
    LIST.write_text(json.dumps({name: collect() for name, collect in COLLECTED.items()}, indent=1) + "\n")
