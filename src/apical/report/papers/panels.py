"""The papers' figures from our data, one SVG each: the same picture on the page and in the docs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apical.report.drawing.colours import HUES, MUTED, TEXT, Ink, inks
from apical.report.drawing.scales import decades
from apical.report.drawing.svg import styled, svg

WIDTH, HEIGHT = 4.6, 3.3  # of a panel, in inches
IMAGE = 1.5  # a side of a panel that is an image
LETTERS = 15  # of a caption, in an inch
ENTRIES = 12  # of a legend, in a column


def draw(panels: Sequence[Mapping[str, Any]], columns: int, caption: str) -> str:
    """An experiment's figure as SVG text: its panels (outcome.json's "shows"), `columns` in a row, above a caption."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    pictures = all(panel["kind"] == "image" for panel in panels)
    width, height = (IMAGE, IMAGE * 1.15) if pictures else (WIDTH, HEIGHT)
    with styled():
        caption = textwrap.fill(caption, int(LETTERS * columns * width))
        figure = Figure(
            figsize=(columns * width, rows * height + 0.2 + 0.15 * len(caption.splitlines())), layout="constrained"
        )
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        chosen = inks(line["label"] for panel in panels for line in panel["lines"])
        explained: set[str] = set()
        for place, panel in zip(axes, panels, strict=False):
            labels = {line["label"] for line in panel["lines"]}
            # Once is enough, and legends of later panels would lie over their curves.
            _draw(place, panel, chosen, legend=not labels <= explained)
            explained |= labels
        for place in axes[len(panels) :]:
            place.set_axis_off()
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=MUTED[0])
        return svg(figure)


def _draw(axes: Axes, panel: Mapping[str, Any], chosen: Mapping[str, Ink], *, legend: bool) -> None:
    axes.set_title(panel["title"])
    if panel["kind"] == "image":
        axes.imshow(np.asarray(panel["image"], dtype=float), cmap="gray", interpolation="nearest")
        axes.set_axis_off()
        return
    axes.grid(axis="y" if panel["kind"] == "bars" else "both", linewidth=0.6)
    axes.set(xlabel=panel["x"], ylabel=panel["y"])
    for mark in panel["marks"]:
        axes.axhline(mark, color=MUTED[0], linewidth=0.8, linestyle=(0, (4, 3)))
    {"lines": _lines, "points": _points, "bars": _bars}[panel["kind"]](axes, panel["lines"], chosen)
    if panel["log_x"]:
        axes.set_xscale("symlog" if _has_zero(panel) else "log")
    if panel["log_y"]:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 100:
            axes.set_yticks(decades(low, high), [f"{mark:g}" for mark in decades(low, high)], minor=False)
            axes.minorticks_off()
    axes.set_ylim(panel["low"], panel["high"])
    if legend and (len(panel["lines"]) > 1 or panel["kind"] == "bars"):
        _explain(axes, markerscale=2 if panel["kind"] == "points" else 1)


def _explain(axes: Axes, markerscale: float) -> None:
    """A legend; one of many lines in columns, each label once, since it would else leave the panel no room."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= ENTRIES:
        axes.legend(markerscale=markerscale)
        return
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    once = {label: first[label] for label in dict.fromkeys(labels)}
    axes.legend(
        once.values(), once.keys(), markerscale=markerscale, ncols=-(-len(once) // ENTRIES), fontsize="xx-small"
    )


def _has_zero(panel: Mapping[str, Any]) -> bool:
    return any(x == 0 for line in panel["lines"] for x in line["x"])


def _lines(axes: Axes, lines: Sequence[Mapping[str, Any]], chosen: Mapping[str, Ink]) -> None:
    for line in lines:
        ink = chosen[line["label"]]
        x, y = _floats(line["x"]), _floats(line["y"])
        drawn = {
            "color": ink.light,
            "marker": "" if ink.dash == "solid" else ink.marker,
            "markevery": max(1, len(x) // 12),
            "markersize": 3.5,
            "linewidth": 1.5,
        }
        axes.plot(x, y, "--" if line["dashed"] else "-", label=line["label"], **drawn)
        if line["spread"] is not None:
            half = _floats(line["spread"])
            axes.fill_between(x, y - half, y + half, color=ink.light, alpha=0.18, linewidth=0)


def _points(axes: Axes, lines: Sequence[Mapping[str, Any]], chosen: Mapping[str, Ink]) -> None:
    map_ = mpl.colormaps["tab10"]
    for index, line in enumerate(lines):
        colour = map_(index % 10) if len(lines) > len(HUES) else chosen[line["label"]].light
        axes.plot(_floats(line["x"]), _floats(line["y"]), ".", color=colour, markersize=2.5, label=line["label"])


def _bars(axes: Axes, lines: Sequence[Mapping[str, Any]], chosen: Mapping[str, Ink]) -> None:
    words = list(dict.fromkeys(word for line in lines for word in line["x"]))
    width = 0.8 / max(len(lines), 1)
    for index, line in enumerate(lines):
        at = np.array([words.index(word) for word in line["x"]], dtype=float) + (index - (len(lines) - 1) / 2) * width
        colour = chosen[line["label"]].light
        axes.bar(
            at,
            _floats(line["y"]),
            width * 0.92,
            yerr=None if line["spread"] is None else _floats(line["spread"]),
            color="none" if line["dashed"] else colour,
            edgecolor=colour,
            ecolor=TEXT[0],
            label=line["label"],
        )
    long = max(map(len, words), default=0) * len(words) > 48
    axes.set_xticks(range(len(words)), words, rotation=30 if long else 0, ha="right" if long else "center")


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
