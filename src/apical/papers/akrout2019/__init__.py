"""Akrout, Wilson, Humphreys, Lillicrap, Tweed 2019."""

EXPERIMENTS = ()
