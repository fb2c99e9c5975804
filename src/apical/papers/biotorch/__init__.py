"""BioTorch (jsalbert/biotorch), a library whose repository holds a table of its own runs."""

from apical.papers.biotorch.cifar10 import CIFAR10

EXPERIMENTS = (CIFAR10,)
