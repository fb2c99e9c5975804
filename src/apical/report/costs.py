"""A benchmark as one standalone SVG: every rule's time of a step beside plain PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apical.report.drawing.colours import MUTED, TEXT, Ink, inks
from apical.report.drawing.svg import card, styled, svg

COLUMNS, WIDTH = 2, 10
PITCH, BETWEEN, TOP = 0.21, 0.75, 0.75  # a rule's row, between panels, above the first one's title, in inches
MARKS = (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)
Measurement = Mapping[str, Any]


def costs(document: Mapping[str, Any]) -> str:
    """The picture of what `apical benchmark --json` wrote: a panel per network and mode, a dot per rule with its quartiles.

    Returns:
        The SVG as text. A panel's group has the network's name as its id, with the mode unless it is eager, a dot's that
        and "/rule".

    Raises:
        ValueError: if the document holds no measurements.

    >>> costs({"measurements": []})
    Traceback (most recent call last):
    ValueError: the file holds no measurements; give one that apical benchmark --json wrote
    """
    found = document.get("measurements")
    if not found:
        raise ValueError("the file holds no measurements; give one that apical benchmark --json wrote")
    panels = list(dict.fromkeys(map(_panel_of, found)))
    rules = [rule for rule in dict.fromkeys(m["rule"] for m in found) if rule != "plain"]
    rows = -(-len(panels) // COLUMNS)
    depth = PITCH * (len(rules) + 0.4)
    height = TOP + rows * (depth + BETWEEN)
    with styled():
        figure = Figure(figsize=(WIDTH, height))
        card(figure)
        figure.text(0.025, 1 - 0.35 / height, _headline(document), fontsize=13, weight="bold")
        figure.text(0.975, 1 - 0.35 / height, "left of 1: faster", fontsize=9, color=MUTED[0], ha="right")
        figure.text(0.025, 1 - 0.56 / height, _subtitle(document), fontsize=9, color=MUTED[0])
        for place, panel in enumerate(panels):
            down, across = divmod(place, COLUMNS)
            top = TOP + 0.3 + down * (depth + BETWEEN)
            axes = figure.add_axes((0.135 + 0.5 * across, 1 - (top + depth) / height, 0.29, depth / height))
            own = {m["rule"]: m for m in found if _panel_of(m) == panel}
            _panel(axes, own, rules, inks(rules), _limits(found))
        return svg(figure, _headline(document))


def _panel_of(m: Measurement) -> tuple[str, str]:
    """Network and mode; files from before there were modes hold eager steps."""
    return m["network"], m.get("mode", "eager")


def _headline(document: Mapping[str, Any]) -> str:
    local = document.get("config", {}).get("local")
    against = "the fastest plain SGD, rules under LocalSGD" if local else "plain PyTorch"
    return f"Time of a training step, as a ratio to {against}"


def _subtitle(document: Mapping[str, Any]) -> str:
    torch = document.get("versions", {}).get("torch", "?")
    return (
        f"medians and quartiles; {document.get('machine', '?')}, PyTorch {torch}, {document.get('date', '?')}; "
        "at the right end of a title, plain PyTorch's step"
    )


def _limits(found: Sequence[Measurement]) -> tuple[float, float]:
    """The ends of all panels' axis, beyond every quartile and the plain step's ratio of 1."""
    low = min([0.9, *(m["timing"]["low"] for m in found)])
    return low / 1.08, max([1.1, *(m["timing"]["high"] for m in found)]) * 1.08


def _panel(
    axes: Axes,
    own: Mapping[str, Measurement],
    rules: Sequence[str],
    chosen: Mapping[str, Ink],
    ends: tuple[float, float],
) -> None:
    """One network: a row per rule, the ratio in figures at its right end."""
    plain = own["plain"]
    network, mode = _panel_of(plain)
    name = network if mode == "eager" else f"{network}, {mode}"
    axes.set_gid(name)
    axes.set_title(f"{name}, batch {plain['batch']}", fontsize=9.5)
    beyond = {"textcoords": "offset points", "xycoords": axes.get_yaxis_transform(), "ha": "right"}
    axes.annotate(
        f"{plain['timing']['milliseconds']:.3g} ms",
        (1, 1),
        (38, 6),
        xycoords="axes fraction",
        color=MUTED[0],
        textcoords="offset points",
        ha="right",
    )
    axes.set(xscale="log", xlim=ends, ylim=(len(rules) - 0.3, -0.7))
    places = [mark for mark in MARKS if ends[0] <= mark <= ends[1]]
    axes.set_xticks(places, [f"{mark:g}" for mark in places])
    axes.minorticks_off()
    axes.set_yticks(range(len(rules)), rules, color=TEXT[0])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", linewidth=0.8)
    axes.axvline(1, color=MUTED[0], linewidth=1.2)
    for place, rule in enumerate(rules):
        if rule not in own:
            continue
        timing, ink = own[rule]["timing"], chosen[rule]
        axes.plot(
            [timing["low"], timing["high"]],
            [place] * 2,
            color=ink.light,
            linewidth=2.3,
            alpha=0.45,
            solid_capstyle="round",
        )
        axes.plot(timing["ratio"], place, ink.marker, color=ink.light, markersize=6, gid=f"{name}/{rule}")
        axes.annotate(f"{timing['ratio']:.2f}", (1, place), (38, 0), va="center_baseline", **beyond)
