"""Lansdell, Prakash, Kording 2020."""

EXPERIMENTS = ()
