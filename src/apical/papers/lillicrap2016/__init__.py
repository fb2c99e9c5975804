"""Lillicrap, Cownden, Tweed, Akerman 2016."""

from apical.papers.lillicrap2016.linear import FIG2A

EXPERIMENTS = (FIG2A,)
