"""The convolutional network of tables 1 and 2b."""

from apical.papers.lansdell2020.cnn.search import SEARCH
from apical.papers.lansdell2020.cnn.tables import TABLE1, TABLE1_CIFAR100, TABLE2B

FIGURES = (TABLE1, TABLE1_CIFAR100, TABLE2B, SEARCH)
