"""Several rules on one network, several seeds each: runs, then one table."""

from __future__ import annotations

import datetime
import math
import platform
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import apical
from apical import data as images
from apical.comparison.choice import obstacle, pays
from apical.comparison.config import CompareConfig
from apical.data import ImageData
from apical.files import write_json
from apical.losses import LOSSES
from apical.measures.audit import audit
from apical.training.config import TrainConfig
from apical.training.machine import machine
from apical.training.options import rule_of
from apical.training.run_folder import RunFolder
from apical.training.session import NonFiniteLossError, Watcher
from apical.training.setup import check, make
from apical.training.side_by_side import train_together
from apical.training.train import train

SHOWN_SAMPLES = 24


AUDITED_SAMPLES = 8


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
) -> dict[str, Any]:
    """Train every rule from every seed, and leave `comparison.json` in `folder` with one run folder per rule and seed.

    A run whose loss is not finite is recorded as failed; the others go on. All seeds of a rule are trained in one pass where
    `config.replicas` has it so; each run's result is then that of a run alone, to rounding.

    Args:
        config: what to compare. data: loaded already, or None to load what the config names.
        folder: for everything. resume: finish a comparison that was stopped.
        overwrite: delete an earlier comparison in `folder`, once all else is known to be right.
        command: the command to show beside the results. announce: gives each run's watcher.
        time_steps: gives each rule's time per step as a ratio to plain backpropagation, measured when all runs are done.

    Returns:
        What comparison.json holds.

    Raises:
        Interrupted: Ctrl-C; call again with resume=True to go on.
        ValueError: bad config, data or folder, or a rule that can't learn this network, before anything is written.
    """
    data = images.load(config.data) if data is None else data
    for rule in config.rules:
        check(config, rule_of(rule), config.first_seed, data)
    home = RunFolder(folder)
    together = _together(config, data)
    if resume:
        home.reopen(_plain(config))
    else:
        home.start(_plain(config), overwrite=overwrite)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    # A comparison that was started goes on as it was started.
    together = [rule for rule in config.rules if _goes_together(config, rule, home.path, rule in together)]
    found = {}
    for rule in together:
        found |= _run_together(config, rule, home.path, data, announce)
    for seed in seeds:
        for rule in config.rules:
            if rule not in together:
                found[rule, seed] = _run(config.run(rule, seed), home.path, data, announce)
    runs = [found[rule, seed] for seed in seeds for rule in config.rules]
    comparison = {
        "format": 1,
        "command": command or " ".join(sys.argv),
        "versions": {"apical": apical.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": machine(),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "data": {
            "name": data.name,
            "train": len(data.train),
            "test": len(data.test),
            "classes": data.classes,
            "shape": list(data.shape),
        },
        "network": config.network + (f" ({config.activation})" if re.fullmatch(r"[\d-]+", config.network) else ""),
        "config": _plain(config),
        "rules": [{**_describe(rule), "together": rule in together} for rule in config.rules],
        "seeds": list(seeds),
        "runs": runs,
    }
    ratios = time_steps(config, data) if time_steps else {}
    comparison["table"] = [_row(config, rule, home.path, runs, data, ratios.get(rule)) for rule in config.rules]
    comparison["samples"] = _samples(home.path, runs, data)
    write_json(home.path / "comparison.json", comparison)
    return comparison


def _together(config: CompareConfig, data: ImageData) -> list[str]:
    """Rules whose seeds are to be trained in one pass."""
    if config.replicas == "off" or (config.replicas == "auto" and config.seeds < 2):
        return []
    if config.replicas == "auto" and not pays(config.run(config.rules[0], config.first_seed), data):
        return []
    found = {rule: obstacle(config.run(rule, config.first_seed), config.seeds, data) for rule in config.rules}
    faults = [f"- {rule}: {reason}" for rule, reason in found.items() if reason is not None]
    if config.replicas == "on" and faults:
        raise ValueError(
            "replicas='on' asks for all seeds of every rule in one pass, and that can't be had:\n"
            + "\n".join(faults)
            + "\nGive replicas='auto', which trains those one by one"
        )
    return [rule for rule, reason in found.items() if reason is None]


def _place(rule: str, seed: int | None = None) -> Path:
    """Where a run lies in the comparison's folder, or what all seeds' runs have in common."""
    name = re.sub(r"[^\w.=-]+", "_", rule)
    return Path("together") / name if seed is None else Path("runs") / f"{name}-{seed}"


def _goes_together(config: CompareConfig, rule: str, home: Path, chosen: bool) -> bool:
    if RunFolder(home / _place(rule)).has_run:
        return True
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return chosen and not any(RunFolder(home / _place(rule, seed)).has_run for seed in seeds)


def _run_together(
    config: CompareConfig, rule: str, home: Path, data: ImageData, announce: Announce | None
) -> dict[tuple[str, int], dict[str, Any]]:
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    places = {seed: _place(rule, seed) for seed in seeds}
    failed = train_together(
        [config.run(rule, seed) for seed in seeds],
        RunFolder(home / _place(rule)),
        [RunFolder(home / place) for place in places.values()],
        data=data,
        watcher=announce(rule, seeds) if announce else None,
    )
    return {(rule, seed): _record(rule, seed, place, failed.get(seed)) for seed, place in places.items()}


def _run(config: TrainConfig, home: Path, data: ImageData, announce: Announce | None) -> dict[str, Any]:
    place = _place(config.rule, config.seed)
    watcher = announce(config.rule, [config.seed]) if announce else None
    try:
        train(config, home / place, data=data, resume=RunFolder(home / place).has_run, watcher=watcher)
    except NonFiniteLossError as error:
        return _record(config.rule, config.seed, place, str(error))
    return _record(config.rule, config.seed, place)


def _record(rule: str, seed: int, place: Path, failed: str | None = None) -> dict[str, Any]:
    record = {"rule": rule, "seed": seed, "folder": place.as_posix()}
    return record if failed is None else {**record, "failed": failed}


def _row(
    config: CompareConfig, rule: str, home: Path, runs: list[dict[str, Any]], data: ImageData, ratio: float | None
) -> dict[str, Any]:
    results = [RunFolder(home / run["folder"]).result for run in runs if run["rule"] == rule and "failed" not in run]
    errors = [result["test_error"] for result in results if result is not None]
    transported, broadcast = _audited(config, rule, data)
    return {
        "rule": rule,
        "runs": len(errors),
        "test_error_mean": statistics.fmean(errors) if errors else None,
        "test_error_sem": statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else None,
        "step_ratio": ratio,
        "transported": transported,
        "broadcast": broadcast,
        "angles": _mean_angles([result["alignment"] for result in results if result and result["alignment"]]),
    }


def _mean_angles(alignments: list[dict[str, dict[str, float | None]]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in alignments[0] if alignments else ():
        angles = [found[name]["delta_angle"] for found in alignments]
        defined = [angle for angle in angles if angle is not None]
        means[name] = statistics.fmean(defined) if defined else None
    return means


def _audited(config: CompareConfig, rule: str, data: ImageData) -> tuple[str, str]:
    """What a rule transports and what it broadcasts, in words; nothing where an audit could not tell."""
    model, learner = make(config, rule_of(rule), config.first_seed, data)
    x, y = data.train.batch(torch.arange(min(AUDITED_SAMPLES, len(data.train))))
    try:
        report = audit(learner, x.to(next(model.parameters()).dtype), y, LOSSES[config.loss])
    except ValueError:  # Dead layers hide what they would transport; what was trained counts all the same.
        return "", ""
    return report.summary, report.broadcast


def _samples(home: Path, runs: list[dict[str, Any]], data: ImageData) -> dict[str, Any]:
    """Test images with the first seed's predictions: those that some rule gets wrong, as far as half, then the first ones."""
    predictions = {}
    for run in runs:
        result = RunFolder(home / run["folder"]).result
        if result is not None and run["seed"] == runs[0]["seed"]:
            predictions[run["rule"]] = result["predictions"]
    known = min((len(found) for found in predictions.values()), default=0)
    labels = data.test.labels[:known].tolist()
    wrong = [i for i in range(known) if any(found[i] != labels[i] for found in predictions.values())]
    chosen = wrong[: SHOWN_SAMPLES // 2]
    chosen = sorted(chosen + [i for i in range(known) if i not in chosen][: SHOWN_SAMPLES - len(chosen)])
    pixels = data.test.images[chosen]
    return {
        "images": (pixels[:, 0] if pixels.shape[1] == 1 else pixels).tolist(),
        "labels": [labels[i] for i in chosen],
        "predictions": {rule: [found[i] for i in chosen] for rule, found in predictions.items()},
        "class_names": list(data.class_names),
    }


def _describe(text: str) -> dict[str, Any]:
    rule = rule_of(text)
    options = text.partition(":")[2]
    return {
        "name": text,
        "title": f"{rule.title} ({options})" if options else rule.title,
        "cites": "; ".join(rule.citations),
    }


def _plain(config: CompareConfig) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.asdict().items()}
