"""The papers' experiments: each a frozen description, run by `apical reproduce`, its published numbers beside it.

One package per paper, one module per figure; a paper's experiments stand in its `EXPERIMENTS`. A new one is an instance there.
"""

from __future__ import annotations

import importlib
from functools import cache

from apical.checks import nearest
from apical.papers.experiment import Experiment, Task
from apical.papers.outcome import Claim, Line, Outcome, Panel, Published, Row
from apical.papers.record import Curve, Record

PAPERS: dict[str, str] = {
    "lillicrap2016": "Random synaptic feedback weights support error backpropagation for deep learning",
    "nokland2016": "Direct feedback alignment provides learning in deep neural networks",
    "akrout2019": "Deep learning without weight transport",
    "amit2019": "Deep learning with asymmetric connections and Hebbian updates",
    "lansdell2020": "Learning to solve the credit assignment problem",
    "biotorch": "BioTorch's benchmarks, of a library and not of a paper",
    "apical": "Experiments of our own, which no paper has",
}
"""Key -> title, in the order of publication."""

__all__ = [
    "PAPERS",
    "Claim",
    "Curve",
    "Experiment",
    "Line",
    "Outcome",
    "Panel",
    "Published",
    "Record",
    "Row",
    "Task",
    "experiments",
    "find",
]


@cache
def experiments() -> dict[str, Experiment]:
    """The experiments: name -> experiment, paper by paper.

    >>> len([one for one in experiments().values() if one.paper == "nokland2016"])
    12
    """
    found = [one for paper in PAPERS for one in importlib.import_module(f"apical.papers.{paper}").EXPERIMENTS]
    return {one.name: one for one in found}


def find(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        ValueError: if there is none; the nearest are offered.

    >>> find("lillicrap2016/fig2a").title
    'A linear network learns a linear function by random feedback'
    """
    known = experiments()
    if name not in known:
        alike = [one for one in known if name in one.split("/")]
        hint = f"name one of {', '.join(alike)}" if alike else nearest(name, known)
        raise ValueError(f"unknown experiment {name!r}; {hint}")
    return known[name]
