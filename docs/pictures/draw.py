"""Draw the pictures of docs/concepts.md: `python docs/pictures/draw.py` writes the SVG files beside it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

INK, GREY, LIGHT = "#1f2933", "#8a94a0", "#5b6570"
SIGNAL, LEARN, NOISE = "#c2410c", "#15803d", "#0369a1"

Point = tuple[float, float]


def text(ax: Axes, at: Point, words: str, colour: str = INK, size: float = 11, **options: str) -> None:
    """Words, centred unless options say otherwise."""
    ax.text(*at, words, color=colour, fontsize=size, **{"ha": "center", "va": "center", **options})


def arrow(ax: Axes, start: Point, end: Point, colour: str, bend: float = 0.0, dashed: bool = False) -> None:
    """An arrow; `bend` is the height of its arc as a fraction of its length."""
    ax.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>,head_width=3,head_length=6",
            linewidth=1.7,
            linestyle=(0, (4, 3)) if dashed else "-",
            color=colour,
            shrinkA=0,
            shrinkB=0,
        )
    )


def unit(ax: Axes, at: Point, name: str, colour: str = INK, radius: float = 19) -> None:
    """A layer's activity."""
    ax.add_patch(Circle(at, radius, facecolor="#f8fafc", edgecolor=colour, linewidth=1.4, zorder=3))
    ax.text(*at, name, color=colour, fontsize=11, ha="center", va="center", zorder=4)


def box(ax: Axes, corner: Point, width: float, height: float, colour: str, fill: str = "#f8fafc") -> None:
    """A box with round corners."""
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=8", fc=fill, ec=colour, lw=1.3)
    ax.add_patch(shape)


def synapse(ax: Axes) -> None:
    """Forward weights and feedback weights between two activities."""
    box(ax, (185, 45), 310, 170, GREY, "#ffffff")
    text(ax, (340, 196), "synapse", LIGHT)
    arrow(ax, (110, 155), (204, 155), GREY)
    arrow(ax, (476, 155), (561, 155), GREY)
    box(ax, (205, 135), 270, 40, INK)
    text(ax, (340, 155), "forward weights W:   y = x Wᵀ + b", size=10)
    unit(ax, (90, 155), "x")
    unit(ax, (582, 155), "y")
    box(ax, (205, 65), 270, 40, SIGNAL)
    text(ax, (340, 85), "feedback weights B:   δ B", SIGNAL, 10)
    arrow(ax, (561, 85), (477, 85), SIGNAL)
    arrow(ax, (204, 85), (110, 85), SIGNAL)
    text(ax, (582, 85), "δ", SIGNAL, 14)
    text(ax, (82, 85), "signal", SIGNAL)
    text(ax, (340, 120), "change of W:  δᵀ x", LEARN, 10)
    text(ax, (90, 200), "input", LIGHT, 10)
    text(ax, (582, 200), "output", LIGHT, 10)
    text(ax, (590, 57), "error at the output", LIGHT, 10)
    text(ax, (340, 20), "Backpropagation is the case B = W. Every other rule has a B of its own.", LIGHT)


def chain(ax: Axes, y: float, title: str, left: float = 0) -> list[Point]:
    """Input, two hidden layers and output in a row, with the output's error; their places."""
    places = [(left + at, y) for at in (40, 115, 190, 265)]
    for number, (start, end) in enumerate(pairwise(places), 1):
        arrow(ax, (start[0] + 18, y), (end[0] - 18, y), GREY)
        text(ax, ((start[0] + end[0]) / 2, y + 10), f"$W_{number}$", LIGHT, 9)
    for at, name in zip(places, ("x", "$h_1$", "$h_2$", "y"), strict=True):
        unit(ax, at, name, radius=16)
    text(ax, (left + 300, y), "e", SIGNAL, 14)
    text(ax, (left + 165, y + 52), title, INK, 12)
    return places


def below(at: Point, aside: float = 0.0) -> Point:
    """The place under a layer where a signal leaves or enters."""
    return (at[0] + aside, at[1] - 18)


def pathways(ax: Axes) -> None:
    """Four ways from the output's error to the layers."""
    _, one, two, out = chain(ax, 265, "layer-wise: fa, kp, wm, np")
    arrow(ax, below(out, -4), below(two, 5), SIGNAL, -0.5)
    arrow(ax, below(two, -5), below(one, 4), SIGNAL, -0.5)
    text(ax, (228, 216), "e $B_3$", SIGNAL, 10)
    text(ax, (153, 216), "$δ_2$ $B_2$", SIGNAL, 10)

    _, one, two, out = chain(ax, 265, "direct: dfa, kp-direct", 350)
    arrow(ax, below(out, -6), below(two, 2), SIGNAL, -0.45)
    arrow(ax, below(out, 4), below(one), SIGNAL, -0.5)
    text(ax, (577, 243), "e $D_2$", SIGNAL, 9)
    text(ax, (540, 194), "e $D_1$", SIGNAL, 10)

    _, one, two, out = chain(ax, 95, "indirect: ifa")
    arrow(ax, below(out), below(one, -3), SIGNAL, -0.42)
    arrow(ax, (one[0] + 6, one[1] + 18), (two[0] - 6, two[1] + 19), SIGNAL, -0.4)
    text(ax, (192, 34), "e D", SIGNAL, 10)
    text(ax, (222, 124), "$δ_1$ $W_2$ᵀ", SIGNAL, 10)

    _, one, two, out = chain(ax, 95, "one scalar: reinforce", 350)
    for layer in (one, two):
        arrow(ax, below(out, -2), below(layer), SIGNAL, -0.42, dashed=True)
        text(ax, (layer[0] + 27, layer[1] + 27), "+ c ξ", NOISE, 9)
    text(ax, (555, 34), "(L̃ − L) / c, the same for all", SIGNAL, 10)


def step(ax: Axes, y: float, name: str, words: str, learns: str | None) -> None:
    """One training step in four stations, and the one where the feedback learns."""
    text(ax, (20, y + 7), name, INK, 12, ha="left")
    text(ax, (20, y - 12), words, LIGHT, 9, ha="left")
    stations = {"net(x)": 215, "backward()": 335, "adapt()": 455, "step()": 575}
    for (station, x), after in zip(stations.items(), [*list(stations.values())[1:], None], strict=True):
        here = station == learns
        skipped = station == "adapt()" and not here
        colour = LEARN if here else GREY if skipped else INK
        box(ax, (x - 46, y - 16), 92, 32, colour, "#ecfdf3" if here else "#f8fafc")
        text(ax, (x, y), station, colour, 10)
        if after:
            arrow(ax, (x + 47, y), (after - 47, y), GREY)


def plasticity(ax: Axes) -> None:
    """Where in a training step the feedback comes to be."""
    rows: tuple[tuple[str, str, str | None, str, float], ...] = (
        ("fixed", "fa, frfb, dfa, ifa", None, "B is drawn once and never learns", 395),
        ("with the weights", "kp, matched, urfb", "backward()", "B.grad = δᵀ x, as W.grad", 335),
        ("mirror", "wm", "adapt()", "B grows by rᵀ z: noise z, answer r", 455),
        ("fitted", "np, sg", "adapt()", "B predicts (L̃ − L) ξ / c, or the gradient", 455),
    )
    for y, (name, words, learns, law, x) in zip((258, 186, 114, 42), rows, strict=True):
        step(ax, y, name, words, learns)
        text(ax, (x, y - 29), law, LEARN if learns else LIGHT, 10)


def audit(ax: Axes) -> None:
    """Clean weights for the forward pass, NaN for every other reader."""
    box(ax, (30, 165), 150, 46, INK)
    text(ax, (105, 188), "forward pass")
    box(ax, (265, 165), 150, 46, LEARN, "#ecfdf3")
    text(ax, (340, 188), "weights W", LEARN)
    arrow(ax, (264, 188), (182, 188), LEARN)
    text(ax, (223, 203), "clean", LEARN, 10)
    box(ax, (500, 165), 150, 46, SIGNAL, "#fff7ed")
    text(ax, (575, 188), "NaN for the rest", SIGNAL)
    arrow(ax, (416, 188), (498, 188), GREY, dashed=True)
    text(ax, (457, 203), "poisoned", LIGHT, 10)
    arrow(ax, (105, 164), (105, 132), GREY)
    arrow(ax, (575, 164), (575, 132), SIGNAL)
    box(ax, (30, 84), 620, 46, INK)
    text(ax, (340, 107), "backward pass and adapt, by the rule")
    findings = (
        (105, "no update changes", "nothing", LEARN),
        (340, "updates change with signs only", "signs", NOISE),
        (575, "updates change with sizes", "weights", SIGNAL),
    )
    for x, finding, kind, colour in findings:
        arrow(ax, (x, 83), (x, 60), GREY)
        text(ax, (x, 48), finding, INK, 10)
        text(ax, (x, 26), f"transports {kind}", colour, 12)


PICTURES: dict[str, tuple[Callable[[Axes], None], int]] = {
    "synapse": (synapse, 230),
    "pathways": (pathways, 335),
    "plasticity": (plasticity, 290),
    "audit": (audit, 230),
}


def figure(draw: Callable[[Axes], None], height: int, width: int = 680) -> Figure:
    """A picture in points of a hundredth of an inch."""
    found = Figure(figsize=(width / 100, height / 100))
    ax = found.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.axis("off")
    draw(ax)
    return found


if __name__ == "__main__":
    mpl.rcParams.update({"svg.hashsalt": "apical", "font.family": "DejaVu Sans"})  # the same file every time
    for name, (draw, height) in PICTURES.items():
        figure(draw, height).savefig(
            Path(__file__).with_name(f"{name}.svg"), metadata={"Date": None}, facecolor="white"
        )
