"""Experiments of our own, which no paper prints."""

from apical.papers.apical.gpt import GPT

EXPERIMENTS = (GPT,)
