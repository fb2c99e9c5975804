"""Draws one picture per family of rules: python docs/rules/pictures/draw.py writes the SVG files beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path as Curve

from apical.report.drawing.svg import card, styled, svg

WIDTH, HEIGHT, INCH = 680, 300, 96  # in pixels; y counts downwards
GREY, WORDS, INK, SIGNAL, NOISE, LEARN = "#9aa3ad", "#5b6570", "#1f2933", "#c2410c", "#0369a1", "#15803d"
X = {"x": 80, "h1": 240, "h2": 400, "y": 560}
ROW, RADIUS = 110, 24

Part = Callable[[Axes], object]
"""Draws one thing into the picture."""


def text(x: float, y: float, words: str, colour: str = INK, size: int = 15, anchor: str = "center") -> Part:
    """Words in the picture, on a line at `y`."""
    return lambda axes: axes.text(x, y, words, color=colour, fontsize=0.75 * size, ha=anchor, va="baseline")


def arrow(points: Sequence[tuple[float, float]], colour: str, dashed: bool = False) -> Part:
    """A line (two points) or a cubic curve (four) with an arrow head at its end."""
    codes = [Curve.MOVETO, *([Curve.LINETO] if len(points) == 2 else [Curve.CURVE4] * 3)]
    style = (0, (3, 2)) if dashed else "solid"
    return lambda axes: axes.add_patch(
        patches.FancyArrowPatch(
            path=Curve(points, codes), arrowstyle="-|>", mutation_scale=15, color=colour, linewidth=1.8, linestyle=style
        )
    )


def back(start: str, end: str, label: str, depth: float = 62) -> Part:
    """A teaching signal from below one layer to below another, in an arc."""
    a, b = X[start], X[end]
    top, low = ROW + RADIUS + 2, ROW + RADIUS + 2 + depth
    return both(
        arrow([(a - 8, top), (a - 20, low), (b + 20, low), (b + 8, top)], SIGNAL),
        text((a + b) / 2, top + depth * 0.75 + 20, label, SIGNAL),
    )


def noise(layer: str, label: str) -> Part:
    """Noise that enters a layer from above."""
    x = X[layer]
    return both(arrow([(x, 34), (x, ROW - RADIUS - 2)], NOISE), text(x + 8, 48, label, NOISE, anchor="left"))


def scalar(layer: str, depth: float) -> Part:
    """The same number for all units of a layer, from the output."""
    x, y = X[layer], X["y"]
    return arrow([(y, ROW + RADIUS + 2), (y, depth), (x, depth), (x, ROW + RADIUS + 2)], SIGNAL, dashed=True)


def both(first: Part, second: Part) -> Part:
    """Two things, one after the other."""
    return lambda axes: (first(axes), second(axes))


def network(axes: Axes) -> None:
    """Three layers of weights in a row, and the error behind them."""
    names = list(X)
    for before, after, label in zip(names, names[1:], ("W₁", "W₂", "W₃"), strict=False):
        arrow([(X[before] + RADIUS, ROW), (X[after] - RADIUS - 1, ROW)], GREY)(axes)
        text((X[before] + X[after]) / 2, ROW - 10, label, WORDS)(axes)
    for name, x in X.items():
        axes.add_patch(patches.Circle((x, ROW), RADIUS, facecolor="#f8fafc", edgecolor=INK, linewidth=1.2))
        text(x, ROW + 5, {"h1": "h₁", "h2": "h₂"}.get(name, name))(axes)
    arrow([(X["y"] + RADIUS, ROW), (X["y"] + 60, ROW)], GREY)(axes)
    text(X["y"] + 72, ROW + 5, "e", SIGNAL, 18)(axes)


PICTURES: dict[str, tuple[list[Part], str]] = {
    "backpropagation": (
        [back("y", "h2", "e W₃"), back("h2", "h1", "δ₂ W₂")],
        "The error goes back through the forward weights themselves.",
    ),
    "feedback-alignment": (
        [back("y", "h2", "e B₃"), back("h2", "h1", "δ₂ B₂")],
        "The error goes back through fixed random weights B, layer by layer.",
    ),
    "direct": (
        [back("y", "h2", "e D₂", 50), back("y", "h1", "e D₁", 112)],
        "The output's error goes to every layer straight away.",
    ),
    "sign-symmetry": (
        [back("y", "h2", "e |M| sign(W₃)"), back("h2", "h1", "δ₂ |M| sign(W₂)")],
        "Feedback knows the signs of the weights, not their sizes.",
    ),
    "kolen-pollack": (
        [
            back("y", "h2", "e B₃"),
            back("h2", "h1", "δ₂ B₂"),
            text(480, 248, "ΔB₃ = ΔW₃", LEARN),
            text(320, 248, "ΔB₂ = ΔW₂", LEARN),
        ],
        "Both matrices of a synapse see the same activities, and learn the same.",
    ),
    "weight-mirror": (
        [
            back("y", "h2", "e B₃"),
            back("h2", "h1", "δ₂ B₂"),
            noise("h1", "noise z"),
            text(X["h2"] + 8, 48, "answer r", NOISE, anchor="left"),
            text(320, 248, "ΔB₂ ∝ r z − λ B₂", LEARN),
        ],
        "In mirror mode a layer is driven with noise; B learns from its answer.",
    ),
    "node-perturbation": (
        [
            back("y", "h2", "e B₃"),
            back("h2", "h1", "δ₂ B₂"),
            noise("h1", "c ξ₁"),
            noise("h2", "c ξ₂"),
            text(X["y"] + 8, 48, "L̃ − L", NOISE, anchor="left"),
            text(320, 248, "B₂ fits (L̃ − L) ξ₁ / c", LEARN),
        ],
        "A noisy pass says how the loss depends on each unit; feedback learns to predict it.",
    ),
    "synthetic-gradients": (
        [
            back("y", "h2", "e B₃"),
            back("h2", "h1", "δ₂ B₂"),
            text(320, 248, "B₂ fits the true gradient at h₁", LEARN),
        ],
        "As node perturbation, but fitted to the gradient itself.",
    ),
    "reinforce": (
        [
            noise("h1", "c ξ₁"),
            noise("h2", "c ξ₂"),
            scalar("h2", 210),
            scalar("h1", 262),
            text(330, 252, "one number for all: (L̃ − L) / c", SIGNAL),
        ],
        "No feedback weights: each unit compares its own noise with one broadcast scalar.",
    ),
}


def picture(parts: Sequence[Part], caption: str) -> str:
    """The whole file."""
    with styled():
        figure = Figure(figsize=(WIDTH / INCH, HEIGHT / INCH))
        card(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        axes.set_axis_off()
        for part in (network, *parts, text(WIDTH / 2, HEIGHT - 12, caption, WORDS, 14)):
            part(axes)
        return svg(figure, caption)


if __name__ == "__main__":
    for name, (parts, caption) in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(picture(parts, caption))
