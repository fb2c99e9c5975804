"""Figures 4 to 7 and 10: what the paper says of simpnet, deepnet and deepernet."""

from __future__ import annotations

from typing import Any

from apical.papers import vision
from apical.papers.amit2019.tied import CLOSE, FAR, Tied, gap, much_above, named, ordered, within
from apical.papers.amit2019.training import EPOCHS, READINGS
from apical.papers.claims import Statement
from apical.papers.record import Curve


def _gaps(*curves: Curve) -> str:
    return f"validation error on average {gap(*curves):.2f} points apart"


SHALLOW = (
    ordered("BP with softmax has less error than with the hinge loss (slightly)", "simpnet, bp", "simpnet, bp-h"),
    Statement(
        f"URFB is close to BP (here: within {CLOSE:g} points)",
        ("simpnet, bp", "simpnet, urfb"),
        lambda bp, urfb: within(bp, urfb, CLOSE),
        named("bp", "urfb"),
    ),
    ordered("URFB is never as good as BP", "simpnet, bp", "simpnet, urfb"),
    ordered("URFB is somewhat better than FRFB", "simpnet, urfb", "simpnet, frfb"),
)
FASTER = Statement(
    "URFB is faster than FRFB (here: lower validation error on average over training)",
    ("curve, simpnet, urfb", "curve, simpnet, frfb"),
    lambda urfb, frfb: gap(urfb, frfb) > 0,
    _gaps,
)
HALF = Statement(
    "The difference of FRFB and URFB is larger with half of the connections",
    ("simpnet, urfb", "simpnet, frfb", "simpnet, urfb 50 %", "simpnet, frfb 50 %"),
    lambda urfb, frfb, urfb_half, frfb_half: vision.above_zero([frfb_half, urfb], [urfb_half, frfb]),
    named("urfb", "frfb", "urfb 50 %", "frfb 50 %"),
)
ALIGNED = (
    Statement(
        "The output layer's R reaches a high correlation with W under both rules (here: above 0.5)",
        ("correlations, simpnet, urfb", "correlations, simpnet, frfb"),
        lambda urfb, frfb: min(*urfb["layer 3"], *frfb["layer 3"]) > 0.5,
        lambda urfb, frfb: f"urfb {vision.average(urfb['layer 3']):.3f}, frfb {vision.average(frfb['layer 3']):.3f}",
    ),
    Statement(
        "Alignment is much stronger under URFB (here: a higher correlation in every layer)",
        ("correlations, simpnet, urfb", "correlations, simpnet, frfb"),
        lambda urfb, frfb: all(vision.average(urfb[one]) > vision.average(frfb[one]) for one in urfb),
        lambda urfb, frfb: "; ".join(
            f"{one}: urfb {vision.average(urfb[one]):.3f}, frfb {vision.average(frfb[one]):.3f}" for one in urfb
        ),
    ),
)
DEEP = (
    Statement(
        f"In the deep network URFB is close to BP (here: within {CLOSE:g} points)",
        ("deepernet, bp", "deepernet, urfb"),
        lambda bp, urfb: within(bp, urfb, CLOSE),
        named("bp", "urfb"),
    ),
    Statement(
        f"In the deep network FRFB is clearly worse (here: more than {FAR:g} points above URFB)",
        ("deepernet, urfb", "deepernet, frfb"),
        much_above,
        named("urfb", "frfb"),
    ),
)
DEPTH = (
    *(
        ordered(f"{name} has less error with deepernet than with deepnet", f"deepernet, {rule}", f"deepnet, {rule}")
        for name, rule in (("BP", "bp"), ("BP with the hinge loss", "bp-h"), ("URFB", "urfb"))
    ),
    ordered("BP with softmax has less error than with the hinge loss", "deepernet, bp", "deepernet, bp-h"),
)
COURSES = (
    Statement(
        f"URFB tracks BP from the first epochs (here: validation errors within {CLOSE:g} points on average)",
        ("curve, deepernet, bp", "curve, deepernet, urfb"),
        lambda bp, urfb: abs(gap(bp, urfb)) <= CLOSE,
        _gaps,
    ),
    Statement(
        f"FRFB is much worse all along (here: validation error more than {FAR:g} points above URFB's on average)",
        ("curve, deepernet, urfb", "curve, deepernet, frfb"),
        lambda urfb, frfb: gap(urfb, frfb) > FAR,
        _gaps,
    ),
)


def _figure(name: str, title: str, minutes: float, **fields: Any) -> Tied:
    return Tied(
        name=f"amit2019/{name}",
        title=title,
        length=f"{EPOCHS} epochs",
        seeds=1,
        together=False,
        minutes=minutes,
        data="uoft-cs/cifar10",
        precisions=vision.PRECISIONS,
        **fields,
    )


SIMPNET = "amit2019/simpnet"
DEPTHS = "amit2019/depths"
FIG4 = _figure(
    "fig4",
    "Errors of a shallow network along its training, CIFAR-10",
    3000,
    source="Figure 4",
    readings=(*READINGS, "The caption names no data set: CIFAR-10."),
    networks=("simpnet",),
    rules=("bp", "urfb", "frfb"),
    shows=("curves",),
    statements=(SHALLOW[1], SHALLOW[2], SHALLOW[3], FASTER),
    family=SIMPNET,
)
FIG5 = _figure(
    "fig5",
    "A shallow network by six rules, CIFAR-10",
    6000,
    source="Figure 5, left",
    readings=(
        *READINGS,
        "The figure's numbers are drawn as bars and can't be read off the text, so rows have none beside them.",
    ),
    networks=("simpnet",),
    shows=("errors", "curves"),
    statements=(*SHALLOW, HALF),
    family=SIMPNET,
)
FIG6 = _figure(
    "fig6",
    "Deeper networks by six rules, CIFAR-10",
    60000,
    source="Figure 6",
    readings=(
        *READINGS,
        "The figure names no data set. Its one printed number, BP's error that falls from 50 % to 42 %, is read as CIFAR-100's; "
        "here it is CIFAR-10, so that rows have no number beside them.",
        "deepnet's layers are lost in the text and read from a parameter file of the author's earlier code.",
    ),
    networks=("deepernet", "deepnet"),
    shows=("errors",),
    statements=(*DEEP, *DEPTH),
    family=DEPTHS,
)
FIG7 = _figure(
    "fig7",
    "Errors of a deep network along its training, CIFAR-10",
    24000,
    source="Figure 7",
    readings=(*READINGS, "The figure names no data set: here CIFAR-10."),
    networks=("deepernet",),
    rules=("bp", "urfb", "frfb"),
    shows=("curves",),
    statements=(*DEEP, *COURSES),
    family=DEPTHS,
)
FIG10 = _figure(
    "fig10",
    "Correlation of W and R in a shallow network, CIFAR-10",
    2000,
    source="Figure 10",
    readings=(
        *READINGS,
        "R of the first layer carries no signal. It is drawn, and under URFB moved as W is, to be compared with W.",
    ),
    networks=("simpnet",),
    rules=("urfb", "frfb"),
    shows=("correlations",),
    statements=ALIGNED,
    family=SIMPNET,
)
