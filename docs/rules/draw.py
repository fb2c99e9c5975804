"""Draws one picture per family of rules: python docs/rules/draw.py writes the SVG files beside it."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 680, 300
GREY, INK, SIGNAL, NOISE, LEARN = "#9aa3ad", "#1f2933", "#c2410c", "#0369a1", "#15803d"
X = {"x": 80, "h1": 240, "h2": 400, "y": 560}
ROW = 110


def text(x: float, y: float, words: str, colour: str = INK, size: int = 15, anchor: str = "middle") -> str:
    """Words in the picture."""
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
        f'font-family="Helvetica, Arial, sans-serif">{words}</text>'
    )


def arrow(path: str, colour: str, dashed: bool = False, width: float = 2.5) -> str:
    """A path with an arrow head."""
    dash = ' stroke-dasharray="6 5"' if dashed else ""
    head = {GREY: "grey", SIGNAL: "signal", NOISE: "noise", LEARN: "learn"}[colour]
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash} marker-end="url(#{head})"/>'


def back(start: str, end: str, label: str, depth: float = 62) -> str:
    """A teaching signal from below one layer to below another, in an arc."""
    a, b = X[start], X[end]
    low = ROW + 26 + depth
    path = f"M {a - 8} {ROW + 26} C {a - 20} {low}, {b + 20} {low}, {b + 8} {ROW + 28}"
    return arrow(path, SIGNAL) + text((a + b) / 2, ROW + 26 + depth * 0.75 + 20, label, SIGNAL)


def noise(layer: str, label: str = "") -> str:
    """Noise that enters a layer from above."""
    x = X[layer]
    return arrow(f"M {x} 34 L {x} {ROW - 28}", NOISE) + text(x + 8, 48, label, NOISE, anchor="start")


def network(error: bool = True) -> str:
    """Three layers of weights, in a row."""
    parts = []
    for (_, a), (_, b), label in zip(list(X.items())[:-1], list(X.items())[1:], ("W₁", "W₂", "W₃"), strict=True):
        parts.append(arrow(f"M {a + 25} {ROW} L {b - 29} {ROW}", GREY))
        parts.append(text((a + b) / 2, ROW - 10, label, "#5b6570"))
    for name, x in X.items():
        parts.append(f'<circle cx="{x}" cy="{ROW}" r="24" fill="#f8fafc" stroke="{INK}" stroke-width="1.6"/>')
        parts.append(text(x, ROW + 5, {"h1": "h₁", "h2": "h₂"}.get(name, name)))
    if error:
        parts.append(arrow(f"M {X['y'] + 25} {ROW} L {X['y'] + 58} {ROW}", GREY))
        parts.append(text(X["y"] + 72, ROW + 5, "e", SIGNAL, 18))
    return "".join(parts)


PICTURES = {
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
            text(X["h2"] + 8, 48, "answer r", NOISE, anchor="start"),
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
            text(X["y"] + 8, 48, "L̃ − L", NOISE, anchor="start"),
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
            arrow(f"M {X['y']} {ROW + 26} C {X['y']} 210, {X['h2']} 210, {X['h2']} {ROW + 30}", SIGNAL, dashed=True),
            arrow(f"M {X['y']} {ROW + 26} C {X['y']} 262, {X['h1']} 262, {X['h1']} {ROW + 30}", SIGNAL, dashed=True),
            text(330, 248, "one number for all: (L̃ − L) / c", SIGNAL),
        ],
        "No feedback weights: each unit compares its own noise with one broadcast scalar.",
    ),
}


def picture(parts: list[str], caption: str) -> str:
    """The whole file."""
    heads = "".join(
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M 0 0 L 10 5 L 0 10 z" fill="{colour}"/></marker>'
        for name, colour in (("grey", GREY), ("signal", SIGNAL), ("noise", NOISE), ("learn", LEARN))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<defs>{heads}</defs>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="#ffffff"/>'
        + network()
        + "".join(parts)
        + text(WIDTH / 2, HEIGHT - 12, caption, "#5b6570", 14)
        + "</svg>\n"
    )


if __name__ == "__main__":
    for name, (parts, caption) in PICTURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(picture(parts, caption))
