"""The results that are kept: an outcome and a figure per experiment, a page per paper."""

from __future__ import annotations

from pathlib import Path

from apical.files import write_json
from apical.papers import PAPERS, experiments
from apical.report.atomic import write_text
from apical.report.comparison import ReportError
from apical.report.paper import duration, extent, figure, number, read
from apical.report.templates import template


def publish(folder: Path, results: Path) -> Path:
    """Put the outcome of a finished run into a folder of results, and write the paper's page anew.

    Returns:
        The page.

    Raises:
        ReportError: if a longer run of the experiment is there already; it is kept.
    """
    outcome = read(folder / "outcome.json")
    path = results / f"{outcome['experiment']}.json"
    if path.exists():
        there = read(path)
        if _length(there) > _length(outcome):
            raise ReportError(
                f"{path} holds a longer run ({extent(there)}) than {folder} ({extent(outcome)}) and is kept; delete it first "
                "if the shorter one is to stand there"
            )
    write_json(path, outcome)
    svg = figure(outcome)
    if svg is not None:
        write_text(path.with_suffix(".svg"), svg)
    paper = outcome["experiment"].partition("/")[0]
    return _page(results, paper)


def pages(results: Path) -> list[Path]:
    """Write the pages of all papers with results in this folder.

    Raises:
        ReportError: if there are none.
    """
    there = [paper for paper in PAPERS if (results / paper).is_dir()]
    if not there:
        raise ReportError(f"{results} holds no results; put some there with apical reproduce ID --publish {results}")
    return [_page(results, paper) for paper in there]


def _page(results: Path, paper: str) -> Path:
    outcomes = [
        read(path)
        for name in experiments()
        if name.startswith(f"{paper}/") and (path := results / f"{name}.json").exists()
    ]
    page = results / f"{paper}.md"
    text = template("results.md.jinja", number=number, extent=extent, duration=duration, cell=_cell).render(
        paper=paper, title=PAPERS[paper], outcomes=outcomes
    )
    write_text(page, text)
    return page


def _length(outcome: dict) -> float:
    return outcome["scale"] * len(outcome["seeds"]) * len(outcome["conditions"])


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
