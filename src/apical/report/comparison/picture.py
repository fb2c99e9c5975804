"""A comparison as one standalone SVG, for a README: it needs no browser to be made and no script to be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.files import write_text
from apical.report.comparison import wording
from apical.report.comparison.comparison import Comparison, ReportError
from apical.report.comparison.reading import read
from apical.report.drawing.colours import GRID, MUTED, PAPER, TEXT, inks
from apical.report.drawing.scales import decades, logarithmic, marks
from apical.report.drawing.templates import template

WIDTH = 960
TOP, BOTTOM = 92, 66
LEFT, MIDDLE, RIGHT, END = 66, 548, 606, 924  # the curves stand from LEFT to MIDDLE, the bars from RIGHT to END
ROW = 44
VALUE = 122  # room for an error in words right of the longest bar


@dataclass(frozen=True)
class Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value stands, in pixels."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)


def picture(folder: Path, destination: Path) -> Path:
    """Draw learning curves and final test errors of a comparison folder into a standalone SVG.

    Raises:
        ReportError: where the folder is damaged, no test error was measured, or the destination is no `.svg` file.
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
    height = max(400, TOP + BOTTOM + ROW * len(comparison.rules))
    log = logarithmic(values)
    y = Axis(min(values) / 1.15 if log else 0, max(values) * 1.08 or 1, height - BOTTOM, TOP, log)
    bands = {entry.name: comparison.band(entry.name, "test_error") for entry in comparison.rules}
    ends = [band.x[-1] for band in bands.values() if band]
    starts = [band.x[0] for band in bands.values() if band]
    first, last = min([0.0, *starts]), max(ends, default=1.0)
    x = Axis(first, last if last > first else first + 1, LEFT, MIDDLE)
    chosen = inks(comparison)
    return template("picture.svg.jinja").render(
        width=WIDTH,
        height=height,
        top=TOP,
        floor=height - BOTTOM,
        left=LEFT,
        middle=MIDDLE,
        right=RIGHT,
        text=TEXT[0],
        muted=MUTED[0],
        grid=GRID[0],
        paper=PAPER[0],
        headline=wording.headline(comparison),
        heading=f"Test error on {comparison.data['name']}",
        network=comparison.network,
        axis=comparison.axis.capitalize(),
        x_marks=[(x(mark), f"{mark:g}") for mark in marks(x.high)],
        y_marks=[(y(mark), f"{mark:g}") for mark in (decades(y.low, y.high) if log else marks(y.high))],
        curves=[
            {
                "ink": chosen[name],
                "line": _points(x, y, band.x, band.mean),
                "band": _points(x, y, band.x + band.x[::-1], band.high + band.low[::-1]) if len(band.seeds) > 1 else "",
            }
            for name, band in bands.items()
            if band
        ],
        bars=_bars(comparison, height),
        spread=wording.spread(comparison),
        sems=any(row.test_error_sem is not None for row in comparison.table),
    )


def _points(x: Axis, y: Axis, xs: Sequence[float], ys: Sequence[float]) -> str:
    return " ".join(f"{x(a):g},{y(b):g}" for a, b in zip(xs, ys, strict=True))


def _bars(comparison: Comparison, height: int) -> list[dict[str, Any]]:
    rows = comparison.ranking
    chosen = inks(comparison)
    high = max([(row.test_error_mean or 0) + (row.test_error_sem or 0) for row in rows]) or 1.0
    scale = Axis(0, high, RIGHT, END - VALUE)
    pitch = min(64.0, (height - TOP - BOTTOM) / len(rows))
    bars = []
    for place, row in enumerate(rows):
        mean, sem = row.test_error_mean, row.test_error_sem
        title = comparison.title(row.rule)
        bars.append(
            {
                "ink": chosen[row.rule],
                "y": round(TOP + pitch * place, 1),
                "title": title if len(title) <= 40 else title[:39] + "…",
                "said": wording.percent(comparison, row),
                "beside": round(scale((mean or 0) + (sem or 0)) + (8 if mean else 0), 2),
                "length": 0 if mean is None else round(scale(mean) - RIGHT, 2),
                "whisker": None if mean is None or not sem else (scale(max(mean - sem, 0)), scale(mean + sem)),
            }
        )
    return bars
