"""Lansdell, Prakash, Kording 2020."""

from apical.papers.lansdell2020 import fig2 as coadaptation
from apical.papers.lansdell2020 import fig3_table2a as autoencoder
from apical.papers.lansdell2020 import fig4 as convergence
from apical.papers.lansdell2020.theorems import THEOREMS

EXPERIMENTS = (*coadaptation.FIGURES, *autoencoder.FIGURES, *convergence.FIGURES, THEOREMS)
