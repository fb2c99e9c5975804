"""The picture of a comparison: a drawing of its own, the same for the same data."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from apical.report import ReportError, picture


def test_the_picture_is_a_drawing_of_its_own(original, tmp_path):
    path = picture(original, tmp_path / "picture.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    assert "http://" not in path.read_text().replace("http://www.w3.org", "")


def test_the_picture_says_what_the_table_says_and_is_the_same_again(original, tmp_path):
    path, again = picture(original, tmp_path / "picture.svg"), picture(original, tmp_path / "again.svg")
    text = path.read_text()
    assert again.read_text() == text
    for row in json.loads((original / "comparison.json").read_text())["table"]:
        assert f"{row['test_error_mean']:.1f}" in text
    assert "<title>On digits, Kolen-Pollack ends at" in text


def test_one_seed_and_steps_without_errors_can_be_drawn(folder, tmp_path):
    content = json.loads((folder / "comparison.json").read_text())
    content["runs"] = [run for run in content["runs"] if run["seed"] == 0]
    for row in content["table"]:
        row["test_error_sem"] = None
        row["test_error_mean"] = None if row["rule"] == "fa" else row["test_error_mean"]
    (folder / "comparison.json").write_text(json.dumps(content))
    text = picture(folder, tmp_path / "picture.svg").read_text()
    assert "not finished" in text
    assert "standard error" not in text


def test_only_svg_is_drawn(original, tmp_path):
    with pytest.raises(ReportError, match=r"ends in \.svg"):
        picture(original, tmp_path / "picture.png")


def test_a_folder_without_test_errors_can_not_be_drawn(folder, tmp_path):
    for path in folder.glob("runs/*/metrics.jsonl"):
        path.write_text(path.read_text().replace('"test_error"', '"other_error"'))
    with pytest.raises(ReportError, match="'test_error'"):
        picture(folder, tmp_path / "picture.svg")
