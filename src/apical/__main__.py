"""`python -m apical` is the `apical` command."""

from apical.cli import main

main()
