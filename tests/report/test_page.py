"""The page: what it says equals the folder's data, and a browser shows it without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apical.report import ReportError, learning_curves, read, write


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
