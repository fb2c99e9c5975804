"""A comparison folder with plausible curves, and its page."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest

from apical.report import write

EPOCHS = 20
SEEDS = (0, 1, 2)
LAYERS = ("layers.0", "layers.2", "layers.4")
# name: title, cites, transported, end error, epochs to e-fold, end delta angles, step ratio
RULES = {
    "bp": ("Backpropagation", "Rumelhart et al. 1986", "weights", 2.4, 1.6, (0, 0, 0), 1.0),
    "kp": ("Kolen-Pollack", "Akrout et al. 2019", "nothing", 2.6, 1.9, (24, 15, 0), 1.04),
    "usf": ("Uniform sign-concordant feedback", "Liao et al. 2016", "signs", 3.1, 1.8, (38, 29, 0), 1.02),
    "fa": ("Feedback alignment", "Lillicrap et al. 2016", "nothing", 4.2, 2.6, (66, 48, 0), 0.97),
    "dfa": ("Direct feedback alignment", "Nøkland 2016", "nothing", 4.9, 2.4, (71, 55, 0), 0.84),
    "shallow": ("Shallow learning", "Lillicrap et al. 2016", "nothing", 9.4, 3.1, (90, 90, 0), 0.71),
}


def digit_images(count: int) -> tuple[list, list[int]]:
    """Test images of the bundled digits, 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images[-count:] * 255 / 16).astype(int)
    return pixels.tolist(), digits.target[-count:].tolist()


def make_comparison(folder: Path, rules: tuple[str, ...] = tuple(RULES), seeds: tuple[int, ...] = SEEDS) -> Path:
    """A comparison folder with plausible curves."""
    dice = random.Random(7)
    table, runs, predictions = [], [], {}
    images, labels = digit_images(14)
    for name in rules:
        _, _, transported, end, pace, ends, ratio = RULES[name]
        finals = []
        for seed in seeds:
            run = folder / "runs" / f"{name}-{seed}"
            run.mkdir(parents=True)
            shift, records = dice.gauss(0, 0.06), []
            for epoch in range(EPOCHS + 1):
                left = math.exp(-epoch / pace)
                error = (end + (90 - end) * left) * math.exp(shift + dice.gauss(0, 0.035)) * (1 + 0.9 / (1 + epoch))
                error = min(error, 90 + dice.gauss(0, 1.2))
                record = {
                    "step": epoch * 45,
                    "epoch": float(epoch),
                    "seconds": 0.4 * epoch,
                    "train_loss": 0.004 * end + 2.3 * math.exp(-epoch / pace / 1.1 + shift),
                    "test_loss": 0.03 * end + 2.3 * left * math.exp(shift),
                    "test_error": round(error, 4),
                    "learning_rate": 0.05,
                }
                if epoch % 2 == 0:
                    record["alignment"] = {
                        layer: {
                            "delta_angle": 0.0
                            if not goal
                            else goal + (91 - goal) * math.exp(-epoch / 4) + dice.gauss(0, 1.5),
                            "matrix_angle": None
                            if layer == LAYERS[0] or name in ("shallow", "dfa")
                            else goal * 0.9 + (90 - 0.9 * goal) * math.exp(-epoch / 4),
                            "relative_error": 0.5,
                            "sign_congruence": 0.8,
                            "correlation": 0.6,
                        }
                        for layer, goal in zip(LAYERS, ends, strict=True)
                    }
                records.append(record)
            (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            finals.append(records[-1]["test_error"])
            (run / "result.json").write_text(
                json.dumps({"test_error": finals[-1], "seconds": 8.1 * ratio, "step_ms": 1.2 * ratio})
            )
            runs.append({"rule": name, "seed": seed, "folder": f"runs/{name}-{seed}"})
        last = records[-1]["alignment"]
        table.append(
            {
                "rule": name,
                "test_error_mean": statistics.fmean(finals),
                "test_error_sem": statistics.stdev(finals) / math.sqrt(len(finals)) if len(finals) > 1 else None,
                "step_ratio": ratio,
                "transported": transported,
                "angles": {layer: last[layer]["delta_angle"] for layer in LAYERS},
            }
        )
        predictions[name] = [label if dice.random() > end / 40 else (label + 5) % 10 for label in labels]
    content = {
        "format": 1,
        "command": "apical compare --rules "
        + " ".join(rules)
        + " --data digits --epochs 20 --seeds 0 1 2 --out runs/digits",
        "versions": {"apical": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "machine": "2 cores, x86_64, 8 GB, Linux",
        "date": "2026-05-04T10:20:30+00:00",
        "data": {"name": "digits", "train": 1437, "test": 360, "classes": 10, "shape": [1, 8, 8]},
        "network": "64-100-50-10 (tanh)",
        "config": {
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "momentum": 0.9,
            "weight_decay": 0.0001,
            "batch_size": 32,
            "epochs": EPOCHS,
            "hidden": [100, 50],
            "precision": "32-true",
        },
        "rules": [{"name": name, "title": RULES[name][0], "cites": RULES[name][1]} for name in rules],
        "seeds": list(seeds),
        "runs": runs,
        "table": table,
        "samples": {
            "images": images,
            "labels": labels,
            "predictions": predictions,
            "class_names": [str(digit) for digit in range(10)],
        },
    }
    (folder / "comparison.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "comparison"))


@pytest.fixture(scope="session")
def page(original) -> str:
    return write(original).read_text(encoding="utf-8")
