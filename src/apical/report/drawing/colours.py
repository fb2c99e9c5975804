"""The colours of every figure, table and picture: one ink per rule.

The hues are Okabe and Ito's, which stay apart for the colour-blind, darkened or lightened to stand on either background.
Backpropagation, the reference, is grey. More rules than hues differ by dash and marker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, cycle


@dataclass(frozen=True)
class Ink:
    """How a rule is drawn: a colour on white, one on black, and a dash ("solid", "dash" or "dot").

    >>> Ink("#0072b2", "#4aa8e8", "dash").dasharray
    '6 3'
    """

    light: str
    dark: str
    dash: str = "solid"

    @property
    def dasharray(self) -> str:
        """The dash as SVG's `stroke-dasharray`."""
        return {"solid": "none", "dash": "6 3", "dot": "1.5 3"}[self.dash]

    @property
    def stroke(self) -> tuple[float, tuple[float, ...] | None]:
        """The dash as matplotlib's `linestyle`, in units of the line's width."""
        return 0, {"solid": None, "dash": (3, 1.5), "dot": (0.7, 1.4)}[self.dash]

    @property
    def marker(self) -> str:
        """A matplotlib marker in place of the dash, for dots and where dashes have a meaning of their own."""
        return {"solid": "o", "dash": "s", "dot": "^"}[self.dash]


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
OWN = {"fa": 0, "dfa": 1, "kp": 2, "usf": 3, "wm": 4, "shallow": 5}
"""Rule -> index of its own hue."""

# The rest of a figure, (light, dark); the page's style sheet names the same values.
TEXT = ("#1c2128", "#e6eaf0")
MUTED = ("#5b6472", "#9aa5b4")
GRID = ("#e7eaee", "#2a313b")
PAPER = ("#ffffff", "#161b22")


def inks(names: Iterable[str]) -> dict[str, Ink]:
    """Name -> ink, in the order of the names, of the rules (or other lines) that stand in one picture.

    The six rules of `OWN` have the same hue in all pictures, with whichever options. Every other name takes a hue that no
    name before it has, and once all are taken the first hue again, with the next dash. "bp" is grey.

    >>> chosen = inks(["bp", "frfb", "kp", "fa"])
    >>> chosen["kp"] == inks(["kp:epsilon=0.5"])["kp:epsilon=0.5"], chosen["frfb"].light == HUES[1][0]
    (True, True)
    """
    names = list(dict.fromkeys(names))
    chosen = {"bp": REFERENCE}
    for name in names:
        hue = OWN.get(name.partition(":")[0])
        if hue is not None and (ink := Ink(*HUES[hue])) not in chosen.values():
            chosen[name] = ink
    every = [Ink(*hue, dash) for dash in DASHES for hue in HUES]
    free = chain([ink for ink in every if ink not in chosen.values()], cycle(every))
    for name in names:
        if name not in chosen:
            chosen[name] = next(free)
    return {name: chosen[name] for name in names}


def veil(colour: str, alpha: float = 0.15) -> str:
    """A hex colour as a transparent one, for bands.

    >>> veil("#0072b2")
    'rgba(0,114,178,0.15)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def darkened() -> dict[str, str]:
    """A colour on white -> the same on a dark page, for every colour that a figure has."""
    pairs = [(ink.light, ink.dark) for ink in (REFERENCE, *(Ink(*hue) for hue in HUES))]
    return dict([*pairs, *((veil(light), veil(dark, 0.2)) for light, dark in pairs), TEXT, MUTED, GRID, PAPER])
