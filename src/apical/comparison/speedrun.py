"""The CIFAR-10 speed-run: one small network and one recipe under several rules, and which accuracy each reaches in what time.

The recipe is in the manner of the known speed-runs (Page 2018; Jordan 2024): see `apical.networks.speedrun` for the network.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from apical.comparison.config import CompareConfig
from apical.rules import rules
from apical.training.run_folder import RunFolder

GOAL = 94.0
"""Test accuracy that is run for, in percent."""

GROWS = 0.23
"""Share of the steps in which the learning rate grows; in all others it falls."""

CLOCK = "bp"
"""The rule that others' times are compared with."""


def contenders() -> tuple[str, ...]:
    """The rules that run by default: low-rank Kolen-Pollack among them once there is one."""
    low_rank = ("kp:rank=auto",) if "rank" in rules()["kp"].hyperparameters else ()
    return ("bp", "kp", *low_rank, "wm", "usf")


@dataclass(frozen=True, kw_only=True)
class SpeedrunConfig:
    """What a speed-run leaves open of its recipe.

    >>> config = SpeedrunConfig(epochs=20, seeds=1).comparison()
    >>> round(config.warmup_epochs, 2), round(config.cooldown_epochs, 2), config.network
    (4.6, 15.4, 'speedrun')
    """

    rules: tuple[str, ...] = contenders()
    """Rules to run, with options after a colon: bp kp wm:rate=0.05."""
    seeds: int = 3
    """How many seeds; each gives every rule the same initial weights and order of samples."""
    first_seed: int = 0
    """The first seed."""
    data: str = "uoft-cs/cifar10"
    """A Hugging Face hub name, or a folder in the hub's layout."""
    images: int | None = None
    """Train on so many of the training images, and test on as many at most. None: all."""
    epochs: int = 12
    """Passes over the training data."""
    batch: int = 1000
    """Samples per step."""
    learning_rate: float = 1.5
    """Highest learning rate, that of weights and feedback; biases have 64 times as much."""
    network: str = "speedrun"
    """speedrun, or any that `apical train --network` takes."""
    precision: Literal["32-true", "64-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    """Number format, as Lightning Fabric names it."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""

    def comparison(self) -> CompareConfig:
        """The comparison that a speed-run is.

        Raises:
            ValueError: naming every value that can't be.
        """
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return CompareConfig(
            **own,
            optimizer="SGD:momentum=0.85,nesterov=True",
            weight_decay=1.3e-3,
            decayed="weights",
            bias_rate=64.0,
            warmup_epochs=GROWS * self.epochs,
            cooldown_epochs=(1 - GROWS) * self.epochs,
            label_smoothing=0.2,
            ema=0.95,
            mirrored=True,
            augment="alternating-flip+reflected-crop",
            normalize="own",
            memory_format="channels_last",
            align_every=0,
            checkpoint_every=25,
            replicas="off",
        )


def seconds_of(run: RunFolder, images: int) -> float | None:
    """Seconds that a run has learned from its images, so many in an epoch, without measuring; None where it has not learned."""
    lines, found = run.metrics.read(), 0.0
    for before, line in pairwise(lines):
        if line["images_per_second"]:
            found += (line["epoch"] - before["epoch"]) * images / line["images_per_second"]
    return found or None


def figures(comparison: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a speed-run has found, for JSON: a row for each rule, and all that they depend on.

    accuracy_mean, accuracy_sem: of the test images, in percent, over seeds. seconds_mean, seconds_sem: of training alone, see
    `seconds_of`. ratio: of that to bp's. step_ratio: a training step's time over plain PyTorch's, in turn with it. None: not
    measured.

    Args:
        comparison: what comparison.json holds. folder: where it lies, with its runs.
    """
    images = comparison["data"]["train"]
    rows: list[dict[str, Any]] = []
    for own in comparison["table"]:
        runs = [RunFolder(folder / one["folder"]) for one in comparison["runs"] if one["rule"] == own["rule"]]
        done = [(run, run.result) for run in runs if run.result is not None and "test_error" in run.result]
        accuracy = [100 - result["test_error"] for _, result in done if result is not None]
        seconds = [found for run, _ in done if (found := seconds_of(run, images)) is not None]
        mean = statistics.fmean(seconds) if seconds else None
        rows.append(
            {
                "rule": own["rule"],
                "runs": len(accuracy),
                "accuracy_mean": statistics.fmean(accuracy) if accuracy else None,
                "accuracy_sem": _sem(accuracy),
                "seconds_mean": mean,
                "seconds_sem": _sem(seconds),
                "ratio": None,
                "step_ratio": own["step_ratio"],
                "images_per_second": mean and images * comparison["config"]["epochs"] / mean,
                "transported": own["transported"],
            }
        )
    clock = next((row["seconds_mean"] for row in rows if row["rule"] == CLOCK), None)
    for row in rows:
        row["ratio"] = row["seconds_mean"] / clock if clock and row["seconds_mean"] else None
    kept = ("command", "date", "machine", "versions", "data", "network", "config", "seeds")
    return {"format": 1, "goal": GOAL, **{name: comparison[name] for name in kept}, "rows": rows}


def _sem(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


HEAD = ("rule", "test accuracy [%]", "seeds", "training [s]", "/ bp", "step / plain", "images/s", "transported")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the figures as texts, under `HEAD`.

    >>> cells({"rule": "kp", "runs": 1, "accuracy_mean": 93.9, "accuracy_sem": None, "seconds_mean": 61.2, "seconds_sem": 0.5,
    ...     "ratio": 1.02, "step_ratio": None, "images_per_second": 8170.0, "transported": "nothing"})
    ('kp', '93.90', '1', '61.2 ± 0.5', '1.02', '–', '8,170', 'nothing')
    """
    return (
        row["rule"],
        _told(row["accuracy_mean"], row["accuracy_sem"], "{:.2f}"),
        str(row["runs"]),
        _told(row["seconds_mean"], row["seconds_sem"], "{:,.1f}"),
        _told(row["ratio"], None, "{:.2f}"),
        _told(row["step_ratio"], None, "{:.2f}"),
        _told(row["images_per_second"], None, "{:,.0f}"),
        row["transported"] or "not audited",
    )


def _told(mean: float | None, sem: float | None, form: str) -> str:
    return "–" if mean is None else form.format(mean) + ("" if sem is None else f" ± {form.format(sem)}")


def page(found: dict[str, Any]) -> str:
    """The figures as a page of Markdown."""
    data, config, versions = found["data"], found["config"], found["versions"]
    table = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 2) + "---|"]
    table += ["| " + " | ".join(cells(row)) + " |" for row in found["rows"]]
    reached = [
        f"`{row['rule']}`" for row in found["rows"] if row["accuracy_mean"] and row["accuracy_mean"] >= found["goal"]
    ]
    return "\n".join(
        [
            "# Speed-run: CIFAR-10 without weight transport",
            "",
            f"{data['name']}, {data['train']:,} training and {data['test']:,} test images; network `{found['network']}`, "
            f"{config['epochs']} epochs of batches of {config['batch']}, {config['precision']}. Goal: {found['goal']:g} % test "
            f"accuracy, which {', '.join(reached) or 'no rule'} reached.",
            "",
            *table,
            "",
            "Mean ± standard error over seeds. Training is the time of learning alone, loading and augmenting included and "
            "measuring left out, here and as a ratio to bp's; steps are timed in turn with plain PyTorch's, on one batch.",
            "",
            f"Machine: {found['machine']}. Versions: {', '.join(f'{name} {one}' for name, one in versions.items())}. "
            f"Date: {found['date']}.",
            "",
            "```sh",
            found["command"],
            "```",
            "",
        ]
    )
