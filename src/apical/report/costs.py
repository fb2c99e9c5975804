"""A benchmark as one standalone SVG: every rule's time of a step beside plain PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from apical.report.comparison.picture import Axis
from apical.report.drawing.colours import GRID, HUES, MUTED, PAPER, REFERENCE, TEXT
from apical.report.drawing.templates import template

COLUMNS, PITCH = 2, 21
LEFT, RIGHT = 130, 400  # the axis of a panel; values in figures stand right of it
WIDTH, TOP, BETWEEN = 960, 104, 76
MARKS = (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)


def costs(document: Mapping[str, Any]) -> str:
    """The picture of what `apical benchmark --json` wrote: a panel per network, a dot per rule with its quartiles.

    Raises:
        ValueError: if the document holds no measurements.
    """
    found = document.get("measurements")
    if not found:
        raise ValueError("the file holds no measurements; give one that apical benchmark --json wrote")
    networks = list(dict.fromkeys(m["network"] for m in found))
    rules = [rule for rule in dict.fromkeys(m["rule"] for m in found) if rule != "plain"]
    low = min([0.9, *(m["timing"]["low"] for m in found)]) / 1.08
    high = max([1.1, *(m["timing"]["high"] for m in found)]) * 1.08
    axis = Axis(low, high, LEFT, RIGHT, log=True)
    depth = PITCH * len(rules) + 8
    panels = []
    for place, network in enumerate(networks):
        own = {m["rule"]: m for m in found if m["network"] == network}
        panels.append(
            {
                "x": (place % COLUMNS) * WIDTH // COLUMNS,
                "y": TOP + (place // COLUMNS) * (depth + BETWEEN),
                "depth": depth,
                "title": f"{network}, batch {own['plain']['batch']}",
                "plain": f"{own['plain']['timing']['milliseconds']:.3g} ms",
                "marks": [{"x": axis(mark), "label": f"{mark:g}"} for mark in MARKS if low <= mark <= high],
                "rows": [_row(own[rule], axis, 14 + PITCH * at) for at, rule in enumerate(rules) if rule in own],
            }
        )
    versions = document.get("versions", {})
    against = (
        "the fastest plain SGD, rules under LocalSGD" if document.get("config", {}).get("local") else "plain PyTorch"
    )
    return template("costs.svg.jinja").render(
        width=WIDTH,
        height=TOP + math.ceil(len(networks) / COLUMNS) * (depth + BETWEEN) - 24,
        left=LEFT,
        right=RIGHT,
        text=TEXT[0],
        muted=MUTED[0],
        grid=GRID[0],
        paper=PAPER[0],
        headline=f"Time of a training step, as a ratio to {against}",
        subtitle=f"medians and quartiles; {document.get('machine', '?')}, PyTorch {versions.get('torch', '?')}, "
        f"{document.get('date', '?')}; at the right end of a title, plain PyTorch's step",
        panels=panels,
    )


def _row(measurement: Mapping[str, Any], axis: Axis, y: int) -> dict[str, Any]:
    timing = measurement["timing"]
    ratio = timing["ratio"]
    slower, faster = HUES[1][0], HUES[0][0]
    return {
        "rule": measurement["rule"],
        "y": y,
        "x": axis(ratio),
        "low": axis(timing["low"]),
        "high": axis(timing["high"]),
        "said": f"{ratio:.2f}",
        "colour": REFERENCE.light if measurement["rule"].startswith("bp") else faster if ratio < 1 else slower,
    }
