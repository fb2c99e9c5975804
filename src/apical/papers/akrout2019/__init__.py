"""Akrout, Wilson, Humphreys, Lillicrap, Tweed 2019."""

from apical.papers.akrout2019.released import CIFAR10, MNIST
from apical.papers.akrout2019.theory import THEORY

EXPERIMENTS = (MNIST, CIFAR10, THEORY)
