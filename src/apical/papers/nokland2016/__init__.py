"""Nøkland 2016."""

from apical.papers.nokland2016.conv import TABLE2_CONV, TABLE3_CONV
from apical.papers.nokland2016.discussion import DISCUSSION, TEXT_DEPTH
from apical.papers.nokland2016.fig2_left import FIG2_LEFT
from apical.papers.nokland2016.fig2_right import FIG2_RIGHT
from apical.papers.nokland2016.fig3 import FIG3
from apical.papers.nokland2016.table1 import TABLE1
from apical.papers.nokland2016.table23 import TABLE2, TABLE3
from apical.papers.nokland2016.text_ifa import TEXT_IFA
from apical.papers.nokland2016.theorem1 import THEOREM1

EXPERIMENTS = (
    TABLE1,
    TABLE2,
    TABLE2_CONV,
    TABLE3,
    TABLE3_CONV,
    FIG2_LEFT,
    FIG2_RIGHT,
    FIG3,
    TEXT_IFA,
    DISCUSSION,
    TEXT_DEPTH,
    THEOREM1,
)
