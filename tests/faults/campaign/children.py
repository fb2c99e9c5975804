"""apical in forked children: `apical.cli.main` from an interpreter that has loaded everything, so that faults meet apical
and not its start, and thousands of commands take minutes.

The process that forks must not have run a backward pass: PyTorch can't be forked after one where there is a GPU.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import apical.benchmark
import apical.comparison
import apical.data
import apical.papers.reproduce
import apical.report
import apical.training.train
from apical.cli.command_line import main

apical.data.load()  # The bundled digits are kept by the process.
AT_ONCE = max(1, min(4, len(os.sched_getaffinity(0))))


@dataclass
class Child:
    """A process that runs something with a folder of its own as output."""

    pid: int
    out: Path
    name: Any
    started: float
    code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended; looks, and does not wait."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def wait(self, seconds: float = 120.0) -> Child:
        """Wait for its end; after so many seconds it is killed."""
        until = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > until:
                self.send(signal.SIGKILL)
                seconds, until = 0, float("inf")
            time.sleep(0.003)
        return self

    def send(self, number: int) -> None:
        """Send it a signal, if it goes on."""
        if not self.ended():
            os.kill(self.pid, number)

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return (self.out / "err").read_text(errors="replace")

    @property
    def output(self) -> str:
        """What it has written to stdout."""
        return (self.out / "out").read_text(errors="replace")

    @property
    def traceback(self) -> str:
        """The traceback that it has shown; empty if none."""
        return self.errors[-2000:] if "Traceback (most recent call last)" in self.errors else ""


def fork(
    call: Callable[[], object], out: Path, *, cwd: Path, name: object = None, file_size: int | None = None
) -> Child:
    """Run `call` in a child, with its output in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of threads, which these tests have none of.
        pid = os.fork()
    if pid:
        return Child(pid, out, name, time.monotonic())
    code = 1
    try:
        for number, file in ((1, "out"), (2, "err")):
            os.dup2(os.open(out / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        warnings.resetwarnings()
        os.environ["COLUMNS"] = "200"
        os.fsync = lambda descriptor: None  # Processes are killed, never the machine.
        os.chdir(cwd)
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def apical_in(cwd: Path, *options: object, out: Path, **how: Any) -> Child:
    """`apical` with these options in a child."""
    argv = [str(one) for one in options]

    def call() -> None:
        sys.argv = ["apical", *argv]
        main(argv)

    return fork(call, out, cwd=cwd, **{"name": argv, **how})


def together(starts: Iterable[Callable[[], Child]], seconds: float = 60.0) -> Iterator[Child]:
    """The children that are started, as they end, a few at once; one that takes longer is killed (code -9)."""
    todo, going = iter(starts), []
    while True:
        while len(going) < AT_ONCE and (start := next(todo, None)) is not None:
            going.append(start())
        if not going:
            return
        for child in list(going):
            if child.ended():
                going.remove(child)
                yield child
            elif time.monotonic() - child.started > seconds:
                child.send(signal.SIGKILL)
        time.sleep(0.002)
