"""Amit 2019."""

from apical.papers.amit2019.circuits import CIRCUITS
from apical.papers.amit2019.conservation import CONSERVATION
from apical.papers.amit2019.fig12 import FIG12
from apical.papers.amit2019.theorems import SCALAR, THEOREM1, THEOREM2

EXPERIMENTS = (FIG12, SCALAR, THEOREM1, THEOREM2, CONSERVATION, CIRCUITS)
