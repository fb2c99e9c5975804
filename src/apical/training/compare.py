"""Several rules on one network, several seeds each: runs, then one table."""

from __future__ import annotations

import datetime
import math
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import apical
from apical import data as images
from apical.audit import AuditReport, audit
from apical.data import ImageData
from apical.files import write_json
from apical.losses import LOSSES
from apical.spec import rule_of
from apical.training.config import Recipe, TrainConfig
from apical.training.loop import NonFiniteLossError, Watcher, make, train
from apical.training.run import RunFolder

SHOWN_SAMPLES = 24
AUDITED_SAMPLES = 8

Announce = Callable[[str, int], Watcher]
"""announce(rule, seed) -> the watcher of that run."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Recipe):
    """Rules x seeds on one network."""

    rules: tuple[str, ...] = ("bp", "fa", "dfa", "kp", "usf", "shallow")
    """Rules to compare, with options after a colon: bp fa urfb:epsilon=0.5."""
    seeds: int = 3
    """How many seeds; each gives every rule the same initial weights and order of samples."""
    first_seed: int = 0
    """The first seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules:
            raise ValueError("rules is empty; name at least one rule")
        for rule in self.rules:
            rule_of(rule)
        twice = sorted({rule for rule in self.rules if self.rules.count(rule) > 1})
        if twice:
            raise ValueError(f"rules name {', '.join(twice)} more than once; name each rule once")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")

    def run(self, rule: str, seed: int) -> TrainConfig:
        """The config of one of the runs."""
        own = {key: value for key, value in self.asdict().items() if key not in ("rules", "seeds", "first_seed")}
        return TrainConfig(**own, rule=rule, seed=seed)


def compare(
    config: CompareConfig,
    folder: Path | str,
    *,
    data: ImageData | None = None,
    resume: bool = False,
    command: str | None = None,
    announce: Announce | None = None,
    time_steps: Callable[[CompareConfig, ImageData], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train every rule from every seed, and leave `comparison.json` in `folder` with one run folder per rule and seed.

    A run whose loss is not finite is recorded as failed; the others go on.

    Args:
        config: what to compare. data: loaded already, or None to load what the config names.
        folder: for everything. resume: finish a comparison that was stopped.
        command: the command to show beside the results. announce: gives each run's watcher.
        time_steps: gives each rule's time per step as a ratio to plain backpropagation, measured when all runs are done.

    Returns:
        What comparison.json holds.
    """
    data = images.load(config.data) if data is None else data
    make(
        config, rule_of(config.rules[0]), config.first_seed, data
    )  # What can't be built fails before anything is written.
    home = RunFolder(folder)
    if resume:
        home.reopen(_plain(config))
    else:
        home.start(_plain(config))
    runs = []
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        for rule in config.rules:
            runs.append(_run(config.run(rule, seed), home.path, data, announce))
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
        "rules": [_describe(rule) for rule in config.rules],
        "seeds": list(range(config.first_seed, config.first_seed + config.seeds)),
        "runs": runs,
    }
    ratios = time_steps(config, data) if time_steps else {}
    comparison["table"] = [_row(config, rule, home.path, runs, data, ratios.get(rule)) for rule in config.rules]
    comparison["samples"] = _samples(home.path, runs, data)
    write_json(home.path / "comparison.json", comparison)
    return comparison


def _run(config: TrainConfig, home: Path, data: ImageData, announce: Announce | None) -> dict[str, Any]:
    name = re.sub(r"[^\w.=-]+", "_", config.rule)
    place = Path("runs") / f"{name}-{config.seed}"
    record = {"rule": config.rule, "seed": config.seed, "folder": place.as_posix()}
    watcher = announce(config.rule, config.seed) if announce else None
    try:
        train(config, home / place, data=data, resume=RunFolder(home / place).has_run, watcher=watcher)
    except NonFiniteLossError as error:
        record["failed"] = str(error)
    return record


def _row(
    config: CompareConfig, rule: str, home: Path, runs: list[dict[str, Any]], data: ImageData, ratio: float | None
) -> dict[str, Any]:
    results = [RunFolder(home / run["folder"]).result for run in runs if run["rule"] == rule and "failed" not in run]
    errors = [result["test_error"] for result in results if result is not None]
    audited = _audited(config, rule, data)
    return {
        "rule": rule,
        "runs": len(errors),
        "test_error_mean": statistics.fmean(errors) if errors else None,
        "test_error_sem": statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else None,
        "step_ratio": ratio,
        "transported": audited.summary,
        "broadcast": audited.broadcast,
        "angles": _mean_angles([result["alignment"] for result in results if result and result["alignment"]]),
    }


def _mean_angles(alignments: list[dict[str, dict[str, float | None]]]) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in alignments[0] if alignments else ():
        angles = [found[name]["delta_angle"] for found in alignments]
        defined = [angle for angle in angles if angle is not None]
        means[name] = statistics.fmean(defined) if defined else None
    return means


def _audited(config: CompareConfig, rule: str, data: ImageData) -> AuditReport:
    model, learner = make(config, rule_of(rule), config.first_seed, data)
    x, y = data.train.batch(torch.arange(min(AUDITED_SAMPLES, len(data.train))))
    return audit(learner, x.to(next(model.parameters()).dtype), y, LOSSES[config.loss])


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


def machine() -> str:
    """This machine in a few words, without its name."""
    parts = [f"{os.cpu_count()} CPU cores ({platform.machine()})", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
