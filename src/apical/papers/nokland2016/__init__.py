"""Nøkland 2016."""

from apical.papers.nokland2016.curves import FIG2_RIGHT
from apical.papers.nokland2016.features import FIG3
from apical.papers.nokland2016.frozen import FIG2_LEFT
from apical.papers.nokland2016.indirect import TEXT_IFA
from apical.papers.nokland2016.tables import TABLE1, TABLE2, TABLE3
from apical.papers.nokland2016.theorem import THEOREM1

EXPERIMENTS = (TABLE1, TABLE2, TABLE3, FIG2_LEFT, FIG2_RIGHT, FIG3, TEXT_IFA, THEOREM1)
