"""Amit 2019."""

EXPERIMENTS = ()
