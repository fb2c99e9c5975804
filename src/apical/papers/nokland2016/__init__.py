"""Nøkland 2016."""

EXPERIMENTS = ()
