"""Lansdell, Prakash, Kording 2020."""

from apical.papers.lansdell2020 import cnn, fig2, fig3_table2a, fig4
from apical.papers.lansdell2020.theorems import THEOREMS

EXPERIMENTS = (*fig2.FIGURES, *fig3_table2a.FIGURES, *fig4.FIGURES, *cnn.FIGURES, THEOREMS)
