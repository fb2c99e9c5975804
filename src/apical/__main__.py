"""`python -m apical` is the `apical` command."""

from apical.cli.command_line import main

main()
