"""The folder of published results: an outcome and a figure per experiment, a page per paper."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apical.files import sealed, write_json, write_text
from apical.papers import PAPERS, experiments, provenance
from apical.papers.experiment import same_data
from apical.report.drawing.templates import template
from apical.report.error import ReportError
from apical.report.papers.paper import WORDS, extent, figure, read


def publish(folder: Path, results: Path) -> Path:
    """Put the outcome of a finished run into a folder of results, and write the paper's page anew.

    Returns:
        The page.

    Raises:
        ReportError: if a run of the experiment is there already that has what this one lacks; it is kept.
    """
    outcome = read(folder / "outcome.json")
    path = results / f"{outcome['experiment']}.json"
    if path.exists():
        there = read(path)
        if lacking := _lacking(outcome, there):
            raise ReportError(
                f"{path} holds {lacking} ({extent(there)}) than {folder} ({extent(outcome)}) and is kept; delete it first if the "
                "other is to stand there"
            )
    write_json(path, outcome)
    _draw(outcome, path)
    paper = outcome["experiment"].partition("/")[0]
    outcomes = _outcomes(results)
    _summary(results, outcomes)
    return _page(results, paper, outcomes)


def pages(results: Path, *, figures: bool = True) -> list[Path]:
    """Write the pages, and the figures unless told not to, of all papers with results in this folder.

    Returns:
        The papers' pages, and the summary last.

    Raises:
        ReportError: if there are none.
    """
    there = [paper for paper in PAPERS if (results / paper).is_dir()]
    if not there:
        raise ReportError(f"{results} holds no results; put some there with apical reproduce ID --publish {results}")
    outcomes = _outcomes(results)
    for outcome in outcomes if figures else ():
        _draw(outcome, results / f"{outcome['experiment']}.json")
    return [*(_page(results, paper, outcomes) for paper in there), _summary(results, outcomes)]


def judge(results: Path) -> list[Path]:
    """Judge the claims of what is published anew, as experiments judge now, where published rows suffice; then call `pages`.

    Returns:
        The outcomes that have changed; each has a new `date`, and the version of apical that judged.
    """
    outcomes, known, changed = _outcomes(results), experiments(), []
    for outcome in outcomes:
        experiment = known[outcome["experiment"]]
        alike = [
            one
            for one in outcomes
            if known[one["experiment"]].runs == experiment.runs
            and all(one[key] == outcome[key] for key in ("seeds", "scale", "lengths", "data"))
        ]
        rows = {row["label"]: row["ours"] for one in alike for row in one["shows"]["rows"]}
        claims = experiment.claims_of(rows)
        plain = None if claims is None else [asdict(claim) for claim in claims]
        if plain is not None and plain != outcome["shows"]["claims"]:
            outcome["shows"]["claims"] = plain
            outcome |= {"date": provenance.now(), "versions": {**outcome["versions"], "apical": provenance.version()}}
            path = results / f"{outcome['experiment']}.json"
            write_json(path, sealed(outcome))
            changed.append(path)
    return changed


def _draw(outcome: dict[str, Any], path: Path) -> None:
    svg = figure(outcome)
    if svg is not None:
        write_text(path.with_suffix(".svg"), svg)


def _outcomes(results: Path) -> list[dict[str, Any]]:
    """The published outcomes, in the order of the papers."""
    return [read(path) for name in experiments() if (path := results / f"{name}.json").exists()]


def _summary(results: Path, outcomes: list[dict[str, Any]]) -> Path:
    page = results / "summary.md"
    missing = [name for name in experiments() if name not in {outcome["experiment"] for outcome in outcomes}]
    text = template("summary.md.jinja", **WORDS, anchor=_anchor, shared=_shared).render(
        outcomes=outcomes, missing=missing, explained=(results / "README.md").exists()
    )
    write_text(page, text)
    return page


def _page(results: Path, paper: str, outcomes: list[dict[str, Any]]) -> Path:
    own = [outcome for outcome in outcomes if outcome["experiment"].startswith(f"{paper}/")]
    page = results / f"{paper}.md"
    made = template("results.md.jinja", **WORDS, shared=_shared, cell=_cell)
    text = made.render(paper=paper, title=PAPERS[paper], outcomes=own)
    write_text(page, text)
    return page


def _lacking(outcome: dict, there: dict) -> str:
    """The lack of a run beside the published one, in words; empty where there is none. Length goes before seeds."""
    if not same_data(there["data"], outcome["data"]):
        return "a run on other data"
    (longer, same), known = _compared(there, outcome), experiments().get(outcome["experiment"])
    if longer:
        return "a longer run"
    # Conditions that the experiment no longer has are not missed.
    left = set(there["conditions"]) & set(there["conditions"] if known is None else known.conditions)
    if left - set(outcome["conditions"]):
        return "a run of more conditions"
    return "a run of more seeds" if same and len(there["seeds"]) > len(outcome["seeds"]) else ""


def _compared(there: dict, outcome: dict) -> tuple[bool, bool]:
    """Whether a published run is longer than another, and whether they are as long.

    By their steps, as the full length that scales refer to may have changed; by their scales where steps are of other kinds.
    """
    pairs = [(there["scale"], outcome["scale"])]
    if there["lengths"].keys() == outcome["lengths"].keys():
        pairs = [(there["lengths"][name], outcome["lengths"][name]) for name in outcome["lengths"]]
    return any(a > b for a, b in pairs), all(a == b for a, b in pairs)


def _shared(outcome: dict, outcomes: list[dict]) -> str:
    """The experiment whose runs these are, in words, where this one only shows them from another side; else empty."""
    name, known = outcome["experiment"], experiments()
    alike = [one["experiment"] for one in outcomes if known[one["experiment"]].runs == known[name].runs]
    whole = next((one for one in alike if one == known[one].runs), alike[0])
    return "" if whole == name else f", the runs of {whole.partition('/')[2]}"


def _anchor(outcome: dict) -> str:
    """The anchor of an experiment's heading on its paper's page."""
    heading = f"{outcome['experiment']}: {outcome['title']}"
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
