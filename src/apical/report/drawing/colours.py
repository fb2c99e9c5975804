"""One ink per rule, the same in every figure, table and picture.

The hues are Okabe and Ito's, which stay apart for the colour-blind, darkened or lightened to stand on either background.
Backpropagation, the reference, is grey. More rules than hues are told apart by the dash.
"""

from __future__ import annotations

from dataclasses import dataclass

from apical.report.comparison.comparison import BASELINE, Comparison


@dataclass(frozen=True)
class Ink:
    """How a rule is drawn: a colour on white, one on black, and a dash ("solid", "dash" or "dot")."""

    light: str
    dark: str
    dash: str = "solid"

    @property
    def dasharray(self) -> str:
        """The dash as SVG wants it."""
        return {"solid": "none", "dash": "6 3", "dot": "1.5 3"}[self.dash]


REFERENCE = Ink("#4a5260", "#c3cad4")
HUES = (
    ("#0072b2", "#4aa8e8"),
    ("#d55e00", "#ff8a45"),
    ("#009e73", "#2fcfa0"),
    ("#b8528f", "#e794c6"),
    ("#c78a00", "#f2bd4b"),
    ("#3f9fd8", "#96d4fb"),
)
DASHES = ("solid", "dash", "dot")

# The rest of a figure, (light, dark); the page's style sheet names the same values.
TEXT = ("#1c2128", "#e6eaf0")
MUTED = ("#5b6472", "#9aa5b4")
GRID = ("#e7eaee", "#2a313b")
PAPER = ("#ffffff", "#161b22")


def inks(comparison: Comparison) -> dict[str, Ink]:
    """Rule -> ink, in the order of the comparison."""
    others = [entry.name for entry in comparison.rules if entry.name != BASELINE]
    chosen = {
        name: Ink(*HUES[index % len(HUES)], DASHES[index // len(HUES) % len(DASHES)])
        for index, name in enumerate(others)
    }
    return {entry.name: chosen.get(entry.name, REFERENCE) for entry in comparison.rules}


def veil(colour: str, alpha: float = 0.15) -> str:
    """A hex colour, thinned, for bands.

    >>> veil("#0072b2")
    'rgba(0,114,178,0.15)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def darkened() -> dict[str, str]:
    """What each colour of a figure turns into on a dark page."""
    pairs = [(ink.light, ink.dark) for ink in (REFERENCE, *(Ink(*hue) for hue in HUES))]
    return dict([*pairs, *((veil(light), veil(dark, 0.2)) for light, dark in pairs), TEXT, MUTED, GRID, PAPER])
