"""A comparison as one standalone SVG, for a README: it needs no browser to be made and no script to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apical.files import write_text
from apical.report.comparison import wording
from apical.report.comparison.comparison import Comparison
from apical.report.comparison.reading import read
from apical.report.drawing.colours import MUTED, TEXT, inks
from apical.report.drawing.scales import decades, logarithmic, marks
from apical.report.drawing.svg import card, styled, svg
from apical.report.error import ReportError

WIDTH, LEAST, ROW = 10, 4.2, 0.46  # of the picture, of its height, and of a rule's bar, in inches
TOP, BOTTOM = 0.96, 0.7  # above and below the axes, in inches
CURVES, BARS = (0.07, 0.57), (0.63, 0.96)  # from the left to the right end, as fractions of the width
ROOM = 1.65  # of the bars' axis, to the longest bar: an error in words stands beside it
DASH: dict[str, Any] = {"solid": "solid", "dash": (0, (1.1, 0.25)), "dot": (0, (0.35, 0.25))}
"""Of bars, in units of their height: a line's dashes would be too long for them."""


def picture(folder: Path, destination: Path) -> Path:
    """Draw learning curves and final test errors of a comparison folder into a standalone SVG.

    Returns:
        Where the picture is.

    Raises:
        ReportError: where the folder is damaged, no test error was measured, or the destination is no `.svg` file.

    >>> picture(Path("runs/demo"), Path("demo.png"))
    Traceback (most recent call last):
    apical.report.error.ReportError: demo.png: only SVG can be drawn; give a name that ends in .svg
    """
    path = Path(destination)
    if path.suffix.lower() != ".svg":
        raise ReportError(f"{path}: only SVG can be drawn; give a name that ends in .svg")
    write_text(path, render(read(folder)))
    return path


def render(comparison: Comparison) -> str:
    """The picture as text."""
    tracks = [comparison.track(run, "test_error") for run in comparison.runs]
    values = [error for track in tracks for error in track.values()]
    if not values:
        raise ReportError(f"{comparison.folder}: no run has 'test_error' in its metrics.jsonl; nothing can be drawn")
    height = max(LEAST, TOP + BOTTOM + ROW * len(comparison.rules))
    with styled():
        figure = Figure(figsize=(WIDTH, height))
        card(figure)
        curves, bars = (
            figure.add_axes((left, BOTTOM / height, right - left, 1 - (TOP + BOTTOM) / height))
            for left, right in (CURVES, BARS)
        )
        _heading(curves, f"Test error on {comparison.data['name']}", comparison.network)
        _curves(curves, comparison, values)
        sems = any(row.test_error_sem is not None for row in comparison.table)
        _heading(bars, "At the end", "mean ± standard error over seeds" if sems else "")
        _bars(bars, comparison)
        return svg(figure, wording.headline(comparison))


def _heading(axes: Axes, words: str, below: str) -> None:
    axes.set_title(words, fontsize=13, pad=31)
    axes.annotate(below, (0, 1), xytext=(0, 15), xycoords="axes fraction", textcoords="offset points", color=MUTED[0])


def _curves(axes: Axes, comparison: Comparison, values: list[float]) -> None:
    chosen = inks(comparison.names)
    bands = {name: band for name in comparison.names if (band := comparison.band(name, "test_error"))}
    for name, band in bands.items():
        if len(band.seeds) > 1:
            axes.fill_between(band.x, band.low, band.high, color=chosen[name].light, alpha=0.15, linewidth=0)
    for name, band in bands.items():
        axes.plot(band.x, band.mean, color=chosen[name].light, linewidth=1.7, linestyle=chosen[name].stroke)
    first, last = min([0.0, *(band.x[0] for band in bands.values())]), max([band.x[-1] for band in bands.values()])
    log = logarithmic(values)
    low, high = min(values) / 1.15 if log else 0, max(values) * 1.08 or 1
    axes.set_yscale("log" if log else "linear")
    axes.set(xlim=(first, last if last > first else first + 1), ylim=(low, high))
    axes.minorticks_off()
    heights, places = decades(low, high) if log else marks(high), marks(last)
    axes.set_yticks(heights, [f"{mark:g}{' %' if mark == heights[-1] else ''}" for mark in heights])
    axes.set_xticks(places, [f"{mark:g}" for mark in places])
    axes.grid(axis="y", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(comparison.axis.capitalize(), loc="right", color=MUTED[0])
    axes.annotate(
        wording.spread(comparison),
        (0, 0),
        xytext=(0, -24),
        xycoords="axes fraction",
        textcoords="offset points",
        va="center",
        fontsize=9,
        color=MUTED[0],
    )


def _bars(axes: Axes, comparison: Comparison) -> None:
    chosen = inks(comparison.names)
    rows = comparison.ranking
    high = max((row.test_error_mean or 0) + (row.test_error_sem or 0) for row in rows) or 1.0
    axes.set(xlim=(0, ROOM * high), ylim=(max(len(rows), 6) - 0.5, -0.5))
    axes.set_axis_off()
    for place, row in enumerate(rows):
        mean, sem, ink = row.test_error_mean, row.test_error_sem, chosen[row.rule]
        title = comparison.title(row.rule)
        axes.annotate(
            title if len(title) <= 40 else title[:39] + "…", (0, place), xytext=(0, 2), textcoords="offset points"
        )
        bar = axes.plot([0, mean or 0], [place + 0.24] * 2, color=ink.light, linewidth=6.8, linestyle=DASH[ink.dash])[0]
        bar.set_solid_capstyle("butt")
        if mean is not None and sem:
            axes.errorbar(mean, place + 0.24, xerr=sem, color=TEXT[0], elinewidth=1.1, capsize=3, capthick=1.1)
        axes.annotate(
            wording.percent(comparison, row),
            ((mean or 0) + (sem or 0), place + 0.24),
            xytext=(6 if mean else 0, 0),
            textcoords="offset points",
            va="center",
            weight="bold",
        )
