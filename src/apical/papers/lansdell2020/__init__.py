"""Lansdell, Prakash, Kording 2020."""

from apical.papers.lansdell2020 import convergence
from apical.papers.lansdell2020.theorems import THEOREMS

EXPERIMENTS = (*convergence.FIGURES, THEOREMS)
