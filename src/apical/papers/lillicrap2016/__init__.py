"""Lillicrap, Cownden, Tweed, Akerman 2016."""

from apical.papers.lillicrap2016.linear import FIG2A
from apical.papers.lillicrap2016.mnist import FIG3_SPARSE, FIG3A, FIG3B
from apical.papers.lillicrap2016.spiking_mnist import FIG4

EXPERIMENTS = (FIG2A, FIG3A, FIG3B, FIG3_SPARSE, FIG4)
