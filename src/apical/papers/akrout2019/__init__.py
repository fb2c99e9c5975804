"""Akrout, Wilson, Humphreys, Lillicrap, Tweed 2019."""

from apical.papers.akrout2019.imagenet import FIG3A, FIG3B, FIG4, FIG5
from apical.papers.akrout2019.released import CIFAR10, MNIST
from apical.papers.akrout2019.resnet20 import FIG4_CIFAR10
from apical.papers.akrout2019.theory import THEORY

EXPERIMENTS = (FIG3A, FIG3B, FIG4, FIG4_CIFAR10, FIG5, MNIST, CIFAR10, THEORY)
