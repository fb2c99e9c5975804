"""Lansdell, Prakash, Kording 2020."""

from apical.papers.lansdell2020 import autoencoder, coadaptation, convergence
from apical.papers.lansdell2020.theorems import THEOREMS

EXPERIMENTS = (*coadaptation.FIGURES, *autoencoder.FIGURES, *convergence.FIGURES, THEOREMS)
