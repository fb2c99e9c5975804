"""The command line: a class for each command of `apical`."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

import apical
from apical.cli.allocator import keep_freed_memory
from apical.cli.audit import Audit
from apical.cli.benchmark import Benchmark
from apical.cli.compare import Compare
from apical.cli.folders.export import Export
from apical.cli.folders.queue import Queue
from apical.cli.folders.report import Report
from apical.cli.papers import Papers
from apical.cli.reproduce import Reproduce
from apical.cli.rules import Rules
from apical.cli.speedrun import Speedrun
from apical.cli.terminal import plain_errors
from apical.cli.train import Train

Command: Any = (
    Annotated[Compare, tyro.conf.subcommand("compare", prefix_name=False)]
    | Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
    | Annotated[Export, tyro.conf.subcommand("export", prefix_name=False)]
    | Annotated[Queue, tyro.conf.subcommand("queue", prefix_name=False)]
    | Annotated[Audit, tyro.conf.subcommand("audit", prefix_name=False)]
    | Annotated[Rules, tyro.conf.subcommand("rules", prefix_name=False)]
    | Annotated[Report, tyro.conf.subcommand("report", prefix_name=False)]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark", prefix_name=False)]
    | Annotated[Speedrun, tyro.conf.subcommand("speedrun", prefix_name=False)]
    | Annotated[Papers, tyro.conf.subcommand("papers", prefix_name=False)]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce", prefix_name=False)]
)
"""Any of the commands, as tyro reads them; a type to it, but to no type checker."""


def main(arguments: list[str] | None = None) -> None:
    """Run the `apical` command.

    Args:
        arguments: the words after `apical`. None: those of the process.

    >>> main(["rules", "fa"])  # doctest: +ELLIPSIS
    fa: Feedback alignment
    ...
    """
    keep_freed_memory()
    with plain_errors(last=arguments is None):
        command = tyro.cli(
            Command,
            prog="apical",
            description=f"apical {apical.__version__}: train any PyTorch network without weight transport.",
            args=arguments,
        )
        command.run()
