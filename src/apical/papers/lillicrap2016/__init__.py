"""Lillicrap, Cownden, Tweed, Akerman 2016."""

from apical.papers.lillicrap2016.fig2 import FIG2A, FIG2B
from apical.papers.lillicrap2016.fig3 import FIG3_SPARSE, FIG3A, FIG3B, IN_WORDS
from apical.papers.lillicrap2016.fig3d import FIG3D, FIG3D_CONTROL, FIG3D_SWEEP
from apical.papers.lillicrap2016.fig4 import FIG4
from apical.papers.lillicrap2016.fig5 import FIG5A, FIG5C
from apical.papers.lillicrap2016.scale_sweep import PSEUDO_INVERSE, SCALE_SWEEP

EXPERIMENTS = (
    FIG2A,
    FIG2B,
    SCALE_SWEEP,
    FIG3A,
    FIG3B,
    FIG3_SPARSE,
    IN_WORDS,
    FIG3D,
    FIG3D_CONTROL,
    FIG3D_SWEEP,
    FIG4,
    FIG5A,
    FIG5C,
    PSEUDO_INVERSE,
)
