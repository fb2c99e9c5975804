"""Several rules on one network, several seeds each: runs, then one table."""

from __future__ import annotations

import datetime
import platform
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import apical
from apical.comparison import table
from apical.comparison.choice import chosen
from apical.comparison.config import CompareConfig
from apical.comparison.config import place as _place
from apical.data import ImageData
from apical.distributed import check_alone
from apical.files import sealed, write_json
from apical.machine import machine
from apical.training.config import TrainConfig
from apical.training.options import rule_of
from apical.training.run_folder import RunFolder, files_of
from apical.training.session import NonFiniteLossError, Watcher
from apical.training.setup import check
from apical.training.side_by_side import train_together
from apical.training.train import train

Announce = Callable[[str, Sequence[int]], Watcher]
"""announce(rule, seeds) -> the watcher of that run, or of several that are trained together."""


def compare(
    config: CompareConfig,
    folder: Path | str,
    *,
    data: ImageData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str | None = None,
    announce: Announce | None = None,
    time_steps: Callable[[CompareConfig, ImageData], dict[str, float]] | None = None,
    captured: bool = True,
) -> dict[str, Any]:
    """Train every rule from every seed, and leave `comparison.json` in `folder` with one run folder per rule and seed.

    A run whose loss is not finite is recorded as failed; the others go on. All seeds of a rule are trained in one pass where
    `config.replicas` has it so; each run's result is then that of a run alone, to rounding.

    Args:
        config: what to compare. data: loaded already, or None to load what the config names; its options apply to either.
        folder: for everything. resume: finish a comparison that was stopped.
        overwrite: delete an earlier comparison in `folder`, once all else is known to be right.
        command: the command to show beside the results. announce: gives each run's watcher.
        time_steps: gives each rule's time per step as a ratio to plain backpropagation, measured when all runs are done.
        captured: on a GPU, take steps as CUDA graphs where that can be (see `apical.captured`).

    Returns:
        What comparison.json holds.

    Raises:
        Interrupted: Ctrl-C; call again with resume=True to go on.
        ValueError: bad config, data or folder, a rule that can't learn this network, or several processes (torchrun), before
            anything is written.

    >>> import tempfile
    >>> config = CompareConfig(rules=("bp", "fa"), seeds=1, epochs=1, network="64-8-10")
    >>> with tempfile.TemporaryDirectory() as home:
    ...     found = compare(config, f"{home}/all")
    >>> [(row["rule"], row["transported"]) for row in found["table"]]
    [('bp', 'weights'), ('fa', 'nothing')]
    """
    check_alone(
        "a comparison",
        "start it without torchrun (seeds of a rule then learn side by side, see --replicas), or train single runs in several "
        "processes: torchrun ... -m apical train --rule RULE --seed SEED",
    )
    data = config.applied(data or config.data)
    for rule in config.rules:
        check(config, rule_of(rule), config.first_seed, data)
    home = RunFolder(folder)
    together = chosen(config, data)
    if resume:
        home.reopen(_plain(config), config.later())
    else:
        with home.held(overwrite and home.has_run):
            home.start(_plain(config), overwrite=overwrite, more=_left, seal=True, later=config.later())
    with home.held():
        comparison = _compared(config, home, data, together, announce, captured)
        comparison["command"] = command or comparison["command"]
        ratios = time_steps(config, data) if time_steps else {}
        rows = [table.row(config, rule, home.path, comparison["runs"], data, ratios.get(rule)) for rule in config.rules]
        samples = table.samples(home.path, comparison["runs"], data)
        comparison = sealed({**comparison, "table": rows, "samples": samples})
        write_json(home.path / "comparison.json", comparison)
    return comparison


def _compared(
    config: CompareConfig,
    home: RunFolder,
    data: ImageData,
    together: list[str],
    announce: Announce | None,
    captured: bool,
) -> dict[str, Any]:
    """All runs, and what comparison.json says of how they were made."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    # A comparison that was started goes on as it was started.
    together = [rule for rule in config.rules if _goes_together(config, rule, home.path, rule in together)]
    found = {}
    for rule in together:
        found |= _run_together(config, rule, home.path, data, announce, captured)
    for seed in seeds:
        for rule in config.rules:
            if rule not in together:
                found[rule, seed] = _run(config.run(rule, seed), home.path, data, announce, captured)
    runs = [found[rule, seed] for seed in seeds for rule in config.rules]
    return {
        "format": 1,
        "command": " ".join(sys.argv),
        "versions": {"apical": apical.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": machine(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "data": {
            "name": data.name,
            "train": len(data.train),
            "test": len(data.test),
            "classes": data.classes,
            "shape": list(data.shape),
            **({} if data.validation is None else {"validation": len(data.validation)}),
            **({"splits": tested} if (tested := data.tested) != {"test": "split 'test'"} else {}),
        },
        "network": config.network + (f" ({config.activation})" if re.fullmatch(r"[\d-]+", config.network) else ""),
        "config": _plain(config),
        "rules": [{**table.described(rule), "together": rule in together} for rule in config.rules],
        "seeds": list(seeds),
        "measured": {run["folder"]: run.pop("measured") for run in runs if "measured" in run},
        "runs": runs,
    }


def _left(kept: dict[str, Any]) -> list[Path]:
    """All files, beyond those of any run, that a comparison with this config has left in its folder."""
    seeds = range(kept["first_seed"], kept["first_seed"] + kept["seeds"])
    places = [_place(rule, seed) for rule in kept["rules"] for seed in (None, *seeds)]
    return [
        *(place / name for place in places for name in files_of(kept)),
        Path("comparison.json"),
        Path("report.html"),
    ]


def _goes_together(config: CompareConfig, rule: str, home: Path, chosen: bool) -> bool:
    if RunFolder(home / _place(rule)).has_run:
        return True
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return chosen and not any(RunFolder(home / _place(rule, seed)).has_run for seed in seeds)


def _run_together(
    config: CompareConfig, rule: str, home: Path, data: ImageData, announce: Announce | None, captured: bool
) -> dict[tuple[str, int], dict[str, Any]]:
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    places = {seed: _place(rule, seed) for seed in seeds}
    failed = train_together(
        [config.run(rule, seed) for seed in seeds],
        RunFolder(home / _place(rule)),
        [RunFolder(home / place) for place in places.values()],
        data=data,
        watcher=announce(rule, seeds) if announce else None,
        captured=captured,
    )
    lines = RunFolder(home / _place(rule)).measured or {}
    return {
        (rule, seed): _record(rule, seed, home, place, failed.get(seed), lines.get(str(seed)))
        for seed, place in places.items()
    }


def _run(config: TrainConfig, home: Path, data: ImageData, announce: Announce | None, captured: bool) -> dict[str, Any]:
    place = _place(config.rule, config.seed)
    resume, watcher = RunFolder(home / place).has_run, announce(config.rule, [config.seed]) if announce else None
    try:
        train(config, home / place, data=data, resume=resume, watcher=watcher, captured=captured)
    except NonFiniteLossError as error:
        return _record(config.rule, config.seed, home, place, str(error), RunFolder(home / place).metrics.sha256)
    return _record(config.rule, config.seed, home, place)


def _record(
    rule: str, seed: int, home: Path, place: Path, failed: str | None = None, measured: str | None = None
) -> dict[str, Any]:
    """What comparison.json says of a run. measured: the checksum of its metrics.jsonl; None: the one that its result has."""
    measured = measured or RunFolder(home / place).measured
    told = {"failed": failed, "measured": measured}
    record = {"rule": rule, "seed": seed, "folder": place.as_posix()}
    return record | {key: value for key, value in told.items() if value is not None}


def _plain(config: CompareConfig) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.asdict().items()}
