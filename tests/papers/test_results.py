"""The pages of results that stand in the repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from apical.report.papers import results
from apical.report.papers.panels import LETTERS, WIDTH, draw

KEPT = Path(__file__).parents[2] / "docs" / "results"


def test_pages_show_words_as_they_are_written(tmp_path):
    shutil.copytree(KEPT / "akrout2019", tmp_path / "akrout2019")
    page, _ = results.pages(tmp_path)
    text = page.read_text()
    assert "Kolen-Pollack's difference" in text
    assert "&#39;" not in text


def test_pages_are_those_of_the_results_beside_them(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_draw", lambda outcome, path: None)
    shutil.copytree(KEPT, tmp_path / "again")
    for page in results.pages(tmp_path / "again"):
        assert page.read_text() == (KEPT / page.name).read_text(), "run: apical papers --pages docs/results"


def test_a_long_caption_of_a_narrow_figure_is_folded():
    panel = {"title": "a", "x": "", "y": "", "lines": [], "kind": "lines", "marks": (), "log_x": False, "log_y": False}
    caption = "word " * 40
    svg = draw([{**panel, "low": 0, "high": 1}], 1, caption)
    lines = re.findall(r">([^<>]*word[^<>]*)<", svg)
    assert " ".join(lines).split() == caption.split()
    assert max(map(len, lines)) <= LETTERS * WIDTH
