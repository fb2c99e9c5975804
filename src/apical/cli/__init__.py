"""The `apical` command: one file per word of it."""

from apical.cli.command_line import main

__all__ = ["main"]
