"""Amit 2019."""

from apical.papers.amit2019.circuits import CIRCUITS
from apical.papers.amit2019.conservation import CONSERVATION
from apical.papers.amit2019.fig12 import FIG12
from apical.papers.amit2019.figures import FIG4, FIG5, FIG6, FIG7, FIG10
from apical.papers.amit2019.theorems import SCALAR, THEOREM1, THEOREM2
from apical.papers.amit2019.untied import FIG8, FIG9, FIG11

EXPERIMENTS = (
    FIG4,
    FIG5,
    FIG6,
    FIG7,
    FIG8,
    FIG9,
    FIG10,
    FIG11,
    FIG12,
    SCALAR,
    THEOREM1,
    THEOREM2,
    CONSERVATION,
    CIRCUITS,
)
