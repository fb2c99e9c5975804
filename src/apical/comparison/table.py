"""The table of a comparison: a row for each rule, what the rule transports, and test images with everybody's predictions."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from apical.comparison.config import CompareConfig
from apical.data import ImageData
from apical.losses import LOSSES
from apical.measures.audit import audit
from apical.training.options import rule_of
from apical.training.run_folder import RunFolder
from apical.training.setup import make

SHOWN_SAMPLES = 24
AUDITED_SAMPLES = 8


def row(
    config: CompareConfig, rule: str, home: Path, runs: list[dict[str, Any]], data: ImageData, ratio: float | None
) -> dict[str, Any]:
    """The row of one rule: mean test error [%] with its standard error over seeds, time per step, transport, angles [deg].

    Where there is a validation split, the mean error for it stands there as well; of a text the mean loss in bits per byte.
    """
    results = [RunFolder(home / run["folder"]).result for run in runs if run["rule"] == rule and "failed" not in run]
    errors = [result["test_error"] for result in results if result is not None]
    chosen = [result["validation_error"] for result in results if result is not None and "validation_error" in result]
    bits = [result["test_bits_per_byte"] for result in results if result is not None and "test_bits_per_byte" in result]
    transported, broadcast = _audited(config, rule, data)
    return {
        "rule": rule,
        "runs": len(errors),
        "test_error_mean": statistics.fmean(errors) if errors else None,
        "test_error_sem": statistics.stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else None,
        **({} if data.validation is None or not chosen else {"validation_error_mean": statistics.fmean(chosen)}),
        **({"test_bits_per_byte_mean": statistics.fmean(bits)} if bits else {}),
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
    """Transport and broadcast of a rule in words; empty where an audit could not tell."""
    model, learner = make(config, rule_of(rule), config.first_seed, data)
    x, y = data.train.first(AUDITED_SAMPLES)
    try:
        report = audit(
            learner, x.to(next(model.parameters()).dtype) if x.is_floating_point() else x, y, LOSSES[config.loss]
        )
    except ValueError:  # Dead layers hide what they would transport; what was trained counts all the same.
        return "", ""
    return report.summary, report.broadcast


def samples(home: Path, runs: list[dict[str, Any]], data: ImageData) -> dict[str, Any]:
    """Test images with the first seed's predictions: those that some rule gets wrong, as far as half, then the first ones."""
    if len(data.shape) == 1:  # A text shows no pictures.
        return {"images": [], "labels": [], "predictions": {}, "class_names": []}
    predictions = {}
    for run in runs:
        result = RunFolder(home / run["folder"]).result
        if result is not None and run["seed"] == runs[0]["seed"]:
            predictions[run["rule"]] = result["predictions"]
    known = min((len(found) for found in predictions.values()), default=0)
    images, classes = data.test.pictures(known)
    labels = classes.tolist()
    wrong = [i for i in range(known) if any(found[i] != labels[i] for found in predictions.values())]
    chosen = wrong[: SHOWN_SAMPLES // 2]
    chosen = sorted(chosen + [i for i in range(known) if i not in chosen][: SHOWN_SAMPLES - len(chosen)])
    pixels = images[chosen]
    return {
        "images": (pixels[:, 0] if pixels.shape[1] == 1 else pixels).tolist(),
        "labels": [labels[i] for i in chosen],
        "predictions": {rule: [found[i] for i in chosen] for rule, found in predictions.items()},
        "class_names": list(data.class_names),
    }


def described(text: str) -> dict[str, Any]:
    """A rule's name, title and works to cite.

    >>> described("urfb:epsilon=0.5")["title"]
    'Updated random feedback (epsilon=0.5)'
    """
    rule = rule_of(text)
    options = text.partition(":")[2]
    return {
        "name": text,
        "title": f"{rule.title} ({options})" if options else rule.title,
        "cites": "; ".join(rule.citations),
    }
