"""The report: what the page says equals the folder's data, and a browser shows it without a network."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from apical.report import ReportError, learning_curves, picture, read, write

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


def test_the_page_shows_the_numbers_of_the_comparison(page, original):
    for row in json.loads((original / "comparison.json").read_text())["table"]:
        assert f"{row['test_error_mean']:.2f}" in page
    assert "apical compare --rules" in page


def test_bands_lie_between_the_lowest_and_the_highest_seed(original):
    comparison = read(original)
    figure = learning_curves(comparison)
    assert len(figure.data) >= len(comparison.rules)
    values = [float(y) for trace in figure.data for y in (trace.y if trace.y is not None else ()) if y is not None]
    seen = [
        json.loads(line)["test_error"]
        for path in (original / "runs").glob("*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert min(values) >= min(seen) - 1e-9
    assert max(values) <= max(seen) + 1e-9


@pytest.mark.parametrize("measure", ["matrix_angle", "delta_angle"])
def test_a_measure_that_no_rule_has_is_left_out(folder, measure):
    for path in folder.glob("runs/*/metrics.jsonl"):
        path.write_text(path.read_text().replace(f'"{measure}"', '"correlation"'))
    other = {"matrix_angle": "Delta angle", "delta_angle": "Matrix angle"}[measure]
    assert f"<b>{other}</b>" in write(folder).read_text(encoding="utf-8")


def test_text_can_not_break_out(folder):
    content = json.loads((folder / "comparison.json").read_text())
    content["data"]["name"] = "<script>alert(1)</script>"
    content["command"] = "apical compare </script><script>alert(2)</script>"
    (folder / "comparison.json").write_text(json.dumps(content))
    text = write(folder).read_text(encoding="utf-8")
    assert "<script>alert(" not in text


def test_a_run_without_a_result_is_told(folder):
    run = next((folder / "runs").iterdir())
    (run / "result.json").unlink()
    assert write(folder).exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}'])
def test_a_damaged_comparison_is_an_error_that_names_the_file(folder, damage):
    (folder / "comparison.json").write_text(damage)
    (folder / "report.html").write_text("the old one")
    with pytest.raises(ReportError, match=r"comparison\.json"):
        write(folder)
    assert (folder / "report.html").read_text() == "the old one"


@pytest.mark.parametrize(
    ("file", "way_out"), [("result.json", "delete it"), ("metrics.jsonl", "delete the run's folder")]
)
def test_a_damaged_run_is_an_error_with_the_command_that_mends_it(folder, file, way_out):
    path = folder / "runs" / "fa-1" / file
    path.write_text("{\n")
    with pytest.raises(ReportError) as caught:
        write(folder)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(f"{way_out} and go on with: apical compare --resume {folder}")


def test_a_missing_comparison_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(ReportError, match=str(tmp_path)):
        write(tmp_path)


def test_the_picture_is_a_drawing_of_its_own(original, tmp_path):
    path = picture(original, tmp_path / "picture.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    assert "http://" not in path.read_text().replace("http://www.w3.org", "")


@pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="needs Debian's chromium")
def test_a_browser_shows_it_without_a_network(original):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = write(original)
    asked, complaints = [], []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--headless", "--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(path.as_uri())
        tab.wait_for_selector(".js-plotly-plot .main-svg")
        drawn = tab.locator(".js-plotly-plot").count()
        browser.close()
    assert complaints == []
    assert drawn >= 3
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
