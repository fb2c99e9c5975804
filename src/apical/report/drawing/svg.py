"""Matplotlib's pictures as SVG text, in one style and the same bytes for the same data."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import escape
from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, FancyBboxPatch

from apical.report.drawing.colours import GRID, MUTED, PAPER, TEXT

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "apical",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # the names that stand with every text
    "font.size": 9.5,
    "axes.edgecolor": MUTED[0],
    "axes.labelcolor": TEXT[0],
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED[0],
    "ytick.color": MUTED[0],
    "grid.color": GRID[0],
    "text.color": TEXT[0],
    "figure.facecolor": PAPER[0],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@contextmanager
def styled() -> Iterator[None]:
    """A context in which figures get the house's style; make and save a figure inside the same one."""
    with mpl.rc_context(STYLE):
        yield


def svg(figure: Figure, title: str = "") -> str:
    """A figure as SVG text that names neither a date nor a version, so that only new data makes a new file.

    Args:
        figure: drawn inside `styled`.
        title: for those who hear the page instead of seeing it; none where empty.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    start = text.index(">", text.index("<svg")) + 1
    return f"{text[:start]}\n <title>{escape(title)}</title>{text[start:]}" if title else text


def card(figure: Figure, edge: str = "#d5dae0") -> None:
    """Put a figure on a white sheet with round corners, so that it reads on pages of any colour."""
    width, height = figure.get_size_inches()
    figure.patch.set_visible(False)
    sheet = FancyBboxPatch(
        (0.007, 0.007),
        width - 0.014,
        height - 0.014,
        boxstyle=BoxStyle("Round", pad=0, rounding_size=0.12),
        facecolor=PAPER[0],
        edgecolor=edge,
        linewidth=0.75,
        transform=figure.dpi_scale_trans,
        zorder=-1,
    )
    figure.add_artist(sheet)
