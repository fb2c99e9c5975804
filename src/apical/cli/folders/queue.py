"""`apical queue`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from apical.cli.compare import Compare
from apical.cli.reproduce import Reproduce
from apical.cli.speedrun import Speedrun
from apical.cli.terminal import console, line
from apical.cli.train import Train
from apical.distributed import check_alone
from apical.queue import queue as work
from apical.queue.lines import Line, read
from apical.queue.packing import hand_back, take
from apical.training.stopping import Interrupted


@dataclass(frozen=True)
class Queue:
    """Work off a list of runs: one line of FILE after the other, each resumed where it was stopped.

    FILE has a command line of `apical train`, `compare`, `speedrun` or `reproduce` in each line, or is a YAML list of them; the
    queue gives each a folder of its own. Killed or stopped at any moment, the same command goes on. Several queues can work on
    one folder: each takes lines that no other one has. Seeds of one rule learn side by side where a line asks for several:
    `compare --rules kp --seeds 3 --no-time-steps`, `reproduce ID --seeds 5`.

    Where only few and small files pass, --hand-back puts all that was worked on into one archive, cut into files of at most
    16 MiB, checkpoints included; --take brings it into the folder of a queue elsewhere, which goes on there.

    Try:
      apical queue runs.txt --show
      apical queue runs.txt --minutes 9 --hand-back "$OUT"
      apical queue runs.txt --take from-there --show
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The list."""
    folder: Path | None = None
    """Where to leave everything. None: a folder under runs/, named like FILE."""
    minutes: float | None = None
    """Stop the present line after so many minutes, with a checkpoint. None: when all is done."""
    hand_back: Path | None = None
    """Leave what was worked on there at the end, in files of at most 16 MiB: queue.0, queue.1, ... and queue.json."""
    take: Path | None = None
    """First take what --hand-back has left there, once; what is done here already stays."""
    retry: bool = False
    """Try lines again that have failed."""
    show: bool = False
    """Only show what is done."""

    def run(self) -> None:
        """Work."""
        check_alone("a queue", "start it without torchrun, several at once if you like")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be a positive number, got {self.minutes}")
        lines = read(self.file)
        folder = Path("runs") / self.file.stem if self.folder is None else self.folder
        queue, over = work.Queue(folder, lines), False
        if self.take is not None:
            taken = take(queue, self.take)
            line(f"taken from {self.take}: {', '.join(f'line {one.number}' for one in taken) or 'nothing that is new'}")
        if not self.show:
            _check(self.file, [one for one in lines if queue.state(one) == "waiting"])
            if self.retry:
                queue.forget_failures()

            def told(one: Line, what: str) -> None:
                line(f"line {one.number} {what}: {one.text}")

            try:
                over = queue.work(
                    lambda one: _start(queue.log(one), folder, one.words), minutes=self.minutes, told=told
                )
            except KeyboardInterrupt as error:
                stopped = Interrupted("the queue goes on with the same command")
                stopped.status = getattr(error, "status", stopped.status)
                raise stopped from error
            finally:
                if self.hand_back is not None:
                    hand_back(queue, dict.fromkeys(queue.moved), self.hand_back)
        console.print(_table(queue))
        states = [queue.state(one) for one in lines]
        if over:
            line(f"the time is over; go on with the same command ({states.count('done')} of {len(lines)} are done)")
        if not self.show and "failed" in states:
            sys.exit(1)


def _start(log: Path, folder: Path, words: tuple[str, ...]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "apical.cli.folders.worker", str(folder), str(os.getpid()), *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        # Of a session of its own: Ctrl-C is told by the queue, once.
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)


def _check(file: Path, lines: Sequence[Line]) -> None:
    """Refuse lines that their command would refuse, before any is started."""
    kinds: dict[str, type] = {"train": Train, "compare": Compare, "speedrun": Speedrun, "reproduce": Reproduce}
    for one in lines:
        try:
            tyro.cli(kinds[one.words[0]], args=one.words[1:], console_outputs=False)
        except (SystemExit, ValueError, TypeError) as error:
            why = f": {error}" if not isinstance(error, SystemExit) else ""
            raise ValueError(
                f"{file}, line {one.number}: apical {one.words[0]} has no such options{why}; see apical {one.words[0]} --help"
            ) from error


def _table(queue: work.Queue) -> Table:
    table = Table()
    for name in ("", "line", "is", ""):
        table.add_column(name, overflow="fold")
    for one in queue.lines:
        state = queue.state(one)
        note = queue.reason(one) if state == "failed" else queue.progress(one)
        table.add_row(str(one.number), one.text, state, note)
    return table
