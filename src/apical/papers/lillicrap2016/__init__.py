"""Lillicrap, Cownden, Tweed, Akerman 2016."""

from apical.papers.lillicrap2016.depth import FIG3D, FIG3D_CONTROL
from apical.papers.lillicrap2016.linear import FIG2A, FIG2B
from apical.papers.lillicrap2016.quadratic import FIG5A, FIG5C
from apical.papers.lillicrap2016.scales import PSEUDO_INVERSE, SCALE_SWEEP

EXPERIMENTS = (FIG2A, FIG2B, SCALE_SWEEP, FIG3D, FIG3D_CONTROL, FIG5A, FIG5C, PSEUDO_INVERSE)
