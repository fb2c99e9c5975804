"""Lillicrap, Cownden, Tweed, Akerman 2016."""

from apical.papers.lillicrap2016.depth import FIG3D, FIG3D_CONTROL
from apical.papers.lillicrap2016.linear import FIG2A, FIG2B
from apical.papers.lillicrap2016.mnist import FIG3_SPARSE, FIG3A, FIG3B
from apical.papers.lillicrap2016.quadratic import FIG5A, FIG5C
from apical.papers.lillicrap2016.scales import PSEUDO_INVERSE, SCALE_SWEEP
from apical.papers.lillicrap2016.spiking_mnist import FIG4

EXPERIMENTS = (
    FIG2A,
    FIG2B,
    SCALE_SWEEP,
    FIG3A,
    FIG3B,
    FIG3_SPARSE,
    FIG3D,
    FIG3D_CONTROL,
    FIG4,
    FIG5A,
    FIG5C,
    PSEUDO_INVERSE,
)
