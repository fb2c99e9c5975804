"""A queue's folder, and the work on its lines."""

from __future__ import annotations

import datetime
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from apical.files import write_json
from apical.queue.lines import Line
from apical.training.run_folder import RunFolder

TAKEN = 75
"""Status of a process that leaves its line to another one which has it already."""
STOPPED = (129, 130, 143)
"""Statuses of a command that was stopped, and can go on."""
PATIENCE, GRACE = 15.0, 60.0
"""Seconds to wait for a line that somebody has taken who is about to end; and for a process that was asked to end."""

State = Literal["done", "failed", "started", "waiting"]


class Process(Protocol):
    """A process, as `subprocess.Popen` has it."""

    @property
    def returncode(self) -> int | None:
        """Its status, once `poll` has seen its end."""
        ...

    def poll(self) -> int | None:
        """Its status, or None while it goes on."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Send it a signal."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class Queue:
    """The folder of a queue: what its lines have come to.

    Args:
        folder: for everything. lines: of the list.

    Attributes:
        moved: lines that `work` has started or gone on with.
    """

    def __init__(self, folder: Path, lines: Sequence[Line]) -> None:
        self.folder, self.lines = folder, lines
        self.moved: list[Line] = []

    def place(self, line: Line) -> Path:
        """The folder of a line's run."""
        return self.folder / line.name

    def log(self, line: Line) -> Path:
        """The file with what a line's command has said."""
        return self.folder / f"{line.name}.log"

    def state(self, line: Line) -> State:
        """What a line has come to."""
        ended = self._ended(line)
        if ended is not None:
            return "failed" if ended.get("status") else "done"
        return "started" if RunFolder(self.place(line)).has_run else "waiting"

    def reason(self, line: Line) -> str:
        """Why a line has failed: the last that its command has said."""
        said = self.log(line).read_text(errors="replace").strip().splitlines() if self.log(line).exists() else []
        return said[-1].removeprefix("apical: error: ") if said else ""

    def progress(self, line: Line) -> str:
        """How far a line of `apical train` has come, in words; empty for others and before the first measurement."""
        run = RunFolder(self.place(line))
        try:
            result, measured = run.result, run.metrics.read()
        except ValueError as error:
            return str(error)
        if result is not None and "test_error" in result:
            return f"test error {result['test_error']:.2f} %"
        return f"epoch {measured[-1]['epoch']:.1f}, test error {measured[-1]['test_error']:.2f} %" if measured else ""

    def mark(self, line: Line) -> Path:
        """The file that says that a line has ended, and how."""
        return self.folder / f"{line.name}.json"

    def _ended(self, line: Line) -> dict[str, Any] | None:
        try:
            found = json.loads(self.mark(line).read_text())
        except (OSError, ValueError):  # Not there; or damaged, and seeing again that a line is done takes seconds.
            return None
        return found if isinstance(found, dict) else None

    def forget_failures(self) -> None:
        """Have lines that failed tried again."""
        for line in self.lines:
            if self.state(line) == "failed":
                self.mark(line).unlink()

    @contextmanager
    def held(self, line: Line) -> Iterator[bool]:
        """Whether this process has a line for itself while this is open. The system lets go of it if the process dies."""
        locks = self.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / line.name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def free(self, line: Line) -> bool:
        """Whether no process has a line now."""
        with self.held(line) as mine:
            return mine

    def do(self, line: Line, command: Callable[[list[str]], int]) -> int:
        """Start a line, or go on with it, in this process, and note its end.

        command: runs a command of apical in this process, and gives its status.

        Returns:
            The command's status; `TAKEN` if another process has the line.
        """
        with self.held(line) as mine:
            if not mine:
                return TAKEN
            if (state := self.state(line)) in ("done", "failed"):
                return int(state == "failed")
            status = command(line.command(self.place(line), resume=RunFolder(self.place(line)).has_run))
            if status not in STOPPED:
                now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
                write_json(self.mark(line), {"line": line.text, "status": status, "ended": now})
            return status

    def work(
        self,
        start: Callable[[Line], Process],
        *,
        minutes: float | None = None,
        told: Callable[[Line, str], None] = lambda line, what: None,
    ) -> bool:
        """Work off the lines in their order, each in a process of its own, until none is left or the time is over.

        Lines that another queue has taken are passed over; those that were stopped go on at their last checkpoint.

        Args:
            start: starts a process that does a line, see `do`.
            minutes: after which the present line is asked to stop, which it does with a checkpoint at the end of its step.
            told: called with what becomes of a line.

        Returns:
            Whether the time is over.
        """
        until = None if minutes is None else time.monotonic() + 60 * minutes
        tried: set[Line] = set()
        patient = time.monotonic() + PATIENCE
        while left := [one for one in self.lines if one not in tried and self.state(one) in ("started", "waiting")]:
            taken = 0
            for line in left:
                if until is not None and time.monotonic() >= until:
                    return True
                if not self.free(line):
                    taken += 1
                    continue
                if self.state(line) in ("done", "failed"):
                    continue
                self.moved.append(line)
                told(line, "goes on" if self.state(line) == "started" else "starts")
                status = _wait(start(line), until)
                if status == TAKEN:
                    taken += 1
                    continue
                patient = time.monotonic() + PATIENCE
                tried.add(line)
                told(line, "is done" if not status else "was stopped" if _stopped(status) else "failed")
            if taken == len(left):
                if time.monotonic() > patient:
                    return False
                time.sleep(1)
        return False


def _stopped(status: int) -> bool:
    return status in STOPPED or status < 0


def _wait(process: Process, until: float | None) -> int:
    """The status of a process, which is asked to end when the time is over or this one is interrupted."""
    try:
        while (status := process.poll()) is None:
            if until is not None and time.monotonic() >= until:
                return _end(process)
            time.sleep(0.05)
        return status
    except BaseException:
        _end(process)
        raise


def _end(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    least = time.monotonic() + GRACE
    while (status := process.poll()) is None:
        if time.monotonic() > least:
            process.kill()
        time.sleep(0.05)
    return status
