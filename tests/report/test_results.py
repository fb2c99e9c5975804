"""The pages of results that stand in the repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from apical.files import sealed, write_json
from apical.papers import provenance
from apical.report.papers import results
from apical.report.papers.panels import LETTERS, WIDTH, draw
from apical.report.papers.paper import read

KEPT = Path(__file__).parents[2] / "docs" / "results"


def test_pages_show_words_as_they_are_written(tmp_path):
    shutil.copytree(KEPT / "akrout2019", tmp_path / "akrout2019")
    page, _ = results.pages(tmp_path, figures=False)
    text = page.read_text()
    assert "Kolen-Pollack's difference" in text
    assert "&#39;" not in text


def test_pages_are_those_of_the_results_beside_them(tmp_path):
    shutil.copytree(KEPT, tmp_path / "again", ignore=shutil.ignore_patterns("*.svg"))
    for page in results.pages(tmp_path / "again", figures=False):
        assert page.read_text() == (KEPT / page.name).read_text(), "run: apical papers --pages docs/results"


def test_figures_have_the_colours_of_those_beside_the_results(tmp_path):
    name = "akrout2019/code-mnist"
    (tmp_path / name).parent.mkdir()
    shutil.copy(KEPT / f"{name}.json", tmp_path / f"{name}.json")
    results.pages(tmp_path)
    drawn, kept = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, KEPT))
    colours = [sorted(re.findall(r"stroke: (#[0-9a-f]{6})", text)) for text in (drawn, kept)]
    assert colours[0] == colours[1], "run: apical papers --pages docs/results"


def test_a_long_caption_of_a_narrow_figure_is_folded():
    panel = {"title": "a", "x": "", "y": "", "lines": [], "kind": "lines", "marks": (), "log_x": False, "log_y": False}
    caption = "word " * 40
    svg = draw([{**panel, "low": 0, "high": 1}], 1, caption)
    lines = re.findall(r">([^<>]*word[^<>]*)<", svg)
    assert " ".join(lines).split() == caption.split()
    assert max(map(len, lines)) <= LETTERS * WIDTH


def test_published_claims_are_judged_anew_from_published_rows(tmp_path, monkeypatch):
    names = (
        "nokland2016/table2",
        "lansdell2020/table2a",
        "lansdell2020/fig3a",
        "lansdell2020/fig4",
        "amit2019/circuits",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(KEPT / f"{name}.json", tmp_path / f"{name}.json")
    results.judge(tmp_path)
    before = {name: read(tmp_path / f"{name}.json") for name in names}
    assert results.judge(tmp_path) == []
    for name, kept in before.items():
        claims = [{**claim, "holds": not claim["holds"]} for claim in kept["shows"]["claims"]]
        write_json(tmp_path / f"{name}.json", sealed({**kept, "shows": {**kept["shows"], "claims": claims}}))
    monkeypatch.setattr(provenance, "now", lambda: "2030-01-01T00:00:00+00:00")
    changed = results.judge(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in changed} == {f"{name}.json" for name in names[:-1]}
    for path in changed:
        own, kept = read(path), before[str(path.relative_to(tmp_path)).removesuffix(".json")]
        assert own["date"].startswith("2030")
        assert own["shows"] == kept["shows"]
        assert {**own, "date": "", "versions": "", "seal": ""} == {**kept, "date": "", "versions": "", "seal": ""}


def test_a_legend_of_many_lines_leaves_the_panel_room():
    lines = [
        {
            "label": f"a rule and its setting {n // 2}",
            "x": [0, 1],
            "y": [n, n + 1],
            "dashed": bool(n % 2),
            "spread": None,
        }
        for n in range(36)
    ]
    panel = {
        "title": "a",
        "x": "",
        "y": "",
        "lines": lines,
        "kind": "lines",
        "marks": (),
        "log_x": False,
        "log_y": False,
    }
    svg = draw([{**panel, "low": 0, "high": 40}] * 2, 2, "caption")
    assert len(re.findall(r">a rule and its setting 7<", svg)) == 1
