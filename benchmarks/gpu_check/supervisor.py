"""Checks within a time: worker processes, their records, and the file that holds what is known at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from apical.files import write_json

STARTING = 120.0
"""Seconds that a worker may take to start."""
SHARE = 0.55
"""Of the time: what checks of correctness may take together, so that the benchmark has the rest."""
ROOT = Path(__file__).parents[2]

Record = dict[str, Any]


class RefusedError(Exception):
    """The machine can't be checked."""


class Worker:
    """A process that makes checks; see `worker`.

    Attributes:
        about: machine and versions. checks: (name, limit, least) of every check, in order.
    """

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - `end` closes it
        paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # so that it is ended with all that it has started
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        first = self._line(seconds)
        if first is None or "refused" in first:
            why = first["refused"] if first else f"the checks could not be started: {self._tail()}"
            self.end()
            raise RefusedError(why)
        self.about, self.checks = first["about"], first["checks"]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _line(self, seconds: float) -> Record | None:
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        return None if line is None else json.loads(line)

    def make(self, name: str, seconds: float) -> tuple[Record, bool]:
        """The record of a check, and whether this worker can make another."""
        assert self._process.stdin is not None
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(name + "\n")
            self._process.stdin.flush()
        found = self._line(seconds)
        if found is not None:
            return found, found.pop("usable")
        took = time.monotonic() - start
        why = f"took longer than {seconds:.3g} s" if took >= seconds else f"the process ended: {self._tail()}"
        return {"name": name, "ok": False, "figure": None, "seconds": round(took, 3), "error": why}, False

    def _tail(self) -> str:
        """The end of what the process and its libraries wrote."""
        self._log.seek(0)
        return self._log.read()[-1500:].strip()

    def end(self) -> None:
        """End the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):  # what it did not read any more
                pipe.close()  # type: ignore[union-attr]


class Report:
    """The file: written anew at every record."""

    def __init__(self, path: Path | None, head: Record) -> None:
        self.path, self.head = path, head
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        """Take a record, and tell it."""
        self.records.append(record)
        self.write(complete=False)
        word = {True: "ok", False: "FAILED", None: "-"}[record["ok"]]
        figure = _told(record["figure"])
        print(f"{word:7}{record['name']:34}{record['seconds']:7.1f} s  {record['error'] or figure}", flush=True)

    def write(self, *, complete: bool) -> None:
        """Write what is known."""
        if self.path is None:
            return
        timed = [r["figure"] for r in self.records if _timing(r["name"]) and r["figure"]]
        content = {
            **self.head,
            "complete": complete,
            "checks": [{**r, "figure": None} if _timing(r["name"]) else r for r in self.records],
            "measurements": [one for cell in timed for one in cell["measurements"]],
            "missing": [one for cell in timed for one in cell["missing"]],
        }
        write_json(self.path, content)


def _told(figure: Any) -> str:
    """A figure on one line: of several, the largest; of a benchmark, its ratios; of phases, where the device has come."""
    if isinstance(figure, dict) and "measurements" in figure:
        ratios = [f"{m['rule']} {m['timing']['ratio']:.2f}" for m in figure["measurements"] if m["rule"] != "plain"]
        return ", ".join([*ratios, *(f"{one['rule']} missing" for one in figure["missing"])])
    if isinstance(figure, dict) and "on the device" in figure:
        return ", ".join(f"{value:.1f} {name}" for name, value in figure.items())
    if isinstance(figure, dict) and "replays" in figure:
        return f"{figure['largest difference']:.3g}, {figure['replays']} replays" + (
            f": {figure['why']}" if figure["why"] else ""
        )
    if isinstance(figure, dict):
        figure = max((value for value in figure.values() if value is not None), default=None)
    return f"{figure:.3g}" if isinstance(figure, float) else str(figure)


def command(device: str, tiny: bool) -> list[str]:
    """What starts a worker."""
    return [sys.executable, "-m", "benchmarks.gpu_check.worker", device, "tiny" if tiny else "full"]


def run(
    worker_command: Sequence[str], seconds: float, only: Sequence[str], report: Report, clock: Callable[[], float]
) -> None:
    """Make the checks whose names start with one of `only` (all, if there is none), until the time is over.

    Args:
        worker_command: what starts a worker. seconds: time for everything.
        report: takes the records. clock: seconds that have gone by.

    Raises:
        RefusedError: if there is no such device, or no check could be started.
    """
    worker: Worker | None = Worker(worker_command, min(STARTING, seconds))
    try:
        report.head |= worker.about
        chosen = [c for c in worker.checks if not only or any(c[0].startswith(prefix) for prefix in only)]
        both = len({_timing(name) for name, _, _ in chosen}) == 2
        for name, limit, least in chosen:
            left = (SHARE * seconds if both and not _timing(name) else seconds) - clock()
            if left < least:
                report.add(_left_out(name, f"not made: it needs {least:.0f} s, and {max(0.0, left):.0f} are left"))
                continue
            try:
                worker = worker or Worker(worker_command, min(STARTING, left))
            except RefusedError as error:
                report.add(_left_out(name, f"not made: {error}"))
                continue
            found, usable = worker.make(name, min(limit, left))
            report.add(found)
            if not usable:
                worker.end()
                worker = None
    finally:
        if worker is not None:
            worker.end()


def _timing(name: str) -> bool:
    return name.startswith("benchmark/")


def _left_out(name: str, why: str) -> Record:
    return {"name": name, "ok": None, "figure": None, "seconds": 0.0, "error": why}
