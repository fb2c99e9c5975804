"""Akrout, Wilson, Humphreys, Lillicrap, Tweed 2019."""

from apical.papers.akrout2019.released import CIFAR10, MNIST

EXPERIMENTS = (MNIST, CIFAR10)
