"""The page of a reproduced experiment: our numbers beside the paper's, the claims, the figure, the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from apical.files import read_sealed, write_text
from apical.papers import experiments
from apical.papers.experiment import same_data
from apical.report.drawing.templates import asset, template
from apical.report.error import ReportError
from apical.report.papers.panels import draw


def write(folder: Path) -> Path:
    """Write `report.html`, and `figure.svg` where there is one, into the folder of a finished `apical reproduce`.

    Raises:
        ReportError: where outcome.json is missing or damaged.
    """
    outcome = read(folder / "outcome.json")
    svg = figure(outcome)
    if svg is not None:
        write_text(folder / "figure.svg", svg)
    path = folder / "report.html"
    write_text(
        path,
        template("paper.html.jinja", **WORDS).render(
            outcome=outcome,
            shows=outcome["shows"],
            figure=None if svg is None else Markup(svg[svg.index("<svg") :]),
            style=asset("page.css"),
        ),
    )
    return path


def read(path: Path) -> dict[str, Any]:
    """The content of an outcome.json.

    Raises:
        ReportError: if it is missing or damaged.
    """
    try:
        outcome = read_sealed(path)
        outcome["shows"]["panels"]
        for claim in outcome["shows"]["claims"]:
            claim.setdefault("kind", "paper")  # Where it was judged before claims had one.
    except OSError as error:
        raise ReportError(f"{path}: can't be read ({error}); run `apical reproduce` to its end first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path} is damaged ({error}); delete it, and resume the experiment") from None
    return outcome


def figure(outcome: Mapping[str, Any]) -> str | None:
    """The experiment's figure as SVG; None where it has none."""
    shows = outcome["shows"]
    if not shows["panels"]:
        return None
    return draw(shows["panels"], shows["columns"], f"{outcome['experiment']}, {extent(outcome)}")


def extent(outcome: Mapping[str, Any]) -> str:
    """The extent of a run in words, which stand with every table and figure: length, seeds, conditions, data."""
    count, scale = len(outcome["seeds"]), outcome["scale"]
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    known = experiments().get(outcome["experiment"])
    done, most = len(outcome["conditions"]), 0 if known is None else len(known.conditions)
    part = f", {done} of {most} conditions" if done < most else ""
    full = "full length" if scale == 1 else f"{scale:.6g} of the full length"
    return f"{full} ({outcome['length']}), {seeds}{part}{other_data(outcome)}"


def other_data(outcome: Mapping[str, Any]) -> str:
    """The other data in words, and the lengths that follow from it; empty where the run is on the paper's data."""
    known, name = experiments().get(outcome["experiment"]), outcome["data"]
    if name is None or known is None or same_data(name, known.data):
        return ""
    lengths = ", ".join(f"{count:,} {what}" for what, count in outcome["lengths"].items())
    return f"; on other data, {name}: {lengths}"


def origin(outcome: Mapping[str, Any]) -> str:
    """When and by what the runs were made, and when they were judged, in words."""
    made, judged = outcome.get("made"), outcome["date"][:10]
    if made is None:
        return f"torch {outcome['versions']['torch']}, judged {judged} (when and by which commit it ran was not kept)"
    days = dict.fromkeys((made["from"][:10], made["to"][:10]))
    with_what = f"apical {', '.join(made['apical'])}, torch {', '.join(made['torch'])}"
    return f"run {' to '.join(days)} by {with_what}" + ("" if list(days) == [judged] else f", judged {judged}")


def verdict(holds: bool | None, scale: float, kind: str = "paper") -> str:
    """Whether a claim holds, or a number agrees, in words: a shortened run can bear one out, and refute what was derived alone.

    >>> verdict(True, 0.1), verdict(False, 0.1), verdict(False, 1.0), verdict(None, 1.0)
    ('yes', 'not comparable at this length', 'no', 'undecided')
    >>> verdict(False, 0.1, "ours"), verdict(False, 0.1, "derived")
    ('not comparable at this length', 'no')
    """
    if holds is None:
        return "undecided"
    if holds:
        return "yes"
    return "not comparable at this length" if scale < 1 and kind != "derived" else "no"


def counted(claims: Sequence[Mapping[str, Any]], scale: float) -> str:
    """How many of some claims hold, in words; empty for none.

    >>> claims = [{"holds": holds, "kind": "paper"} for holds in (True, False, None)]
    >>> counted(claims, 1.0), counted(claims, 0.1)
    ('1 of 3 (1 undecided)', '1 of 3 (1 undecided, 1 not comparable)')
    """
    if not claims:
        return ""
    words = [verdict(one["holds"], scale, one["kind"]) for one in claims]
    left = {word: words.count(word) for word in ("undecided", "not comparable at this length")}
    more = ", ".join(f"{count} {word.removesuffix(' at this length')}" for word, count in left.items() if count)
    return f"{words.count('yes')} of {len(words)}" + (f" ({more})" if more else "")


def number(mean: float | None, spread: float | None, unit: str) -> str:
    """A number with its ± and unit, as tables show it.

    >>> number(2.1, 0.04, "%"), number(0.000123, None, ""), number(515.3, 4.1, "")
    ('2.10 ± 0.04 %', '0.000123', '515.3 ± 4.1')
    """
    if mean is None:
        return "undefined"
    unit = f" {unit}" if unit and unit != "°" else unit
    digits = 2 if abs(mean) < 100 else 1
    shown = f"{mean:.{digits}f}" if abs(mean) >= 0.1 or mean == 0 else f"{mean:.3g}"
    if spread is None:
        return shown + unit
    return f"{shown} ± {spread:.{digits}f}{unit}" if abs(mean) >= 0.1 else f"{shown} ± {spread:.1g}{unit}"


def printed(published: Mapping[str, Any], unit: str) -> str:
    """A published number with its ±, or a published range.

    >>> printed({"value": 2.4, "spread": None, "to": None}, "%"), printed({"value": 15, "spread": None, "to": 20}, "°")
    ('2.40 %', '15.00 to 20.00°')
    """
    if published.get("to") is None:
        return number(published["value"], published["spread"], unit)
    return f"{number(published['value'], None, '')} to {number(published['to'], None, unit)}"


def duration(seconds: float) -> str:
    """A time in words, from seconds.

    >>> duration(8), duration(200), duration(9000)
    ('8 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


WORDS: Mapping[str, Callable[..., str]] = {
    "number": number,
    "printed": printed,
    "extent": extent,
    "duration": duration,
    "origin": origin,
    "verdict": verdict,
    "counted": counted,
}
"""What templates of pages may call: name -> function."""
