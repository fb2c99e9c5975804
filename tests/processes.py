"""apical interrupted: in a process of its own, or by what watches it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


class BoomError(Exception):
    """What ends a run in the middle."""


def boom_at(limit: int) -> Callable[[int, int, object], None]:
    """A watcher that ends a run after so many steps."""

    def watcher(step: int, steps: int, newest: object) -> None:
        if step == limit:
            raise BoomError

    return watcher


def started(*options: str) -> subprocess.Popen:
    """`apical` with these options."""
    return subprocess.Popen(
        [sys.executable, "-m", "apical", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 90) -> None:
    """Return when the condition holds, the process has ended, or the time is over."""
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def lines(folder: Path) -> int:
    """How many lines of metrics lie in a folder, and below."""
    return sum(path.read_text().count("\n") for path in folder.rglob("metrics.jsonl"))


def killed_and_resumed(kills: int, folder: Path, start: Callable[[], subprocess.Popen], *command: str) -> None:
    """Start something that measures into `folder`, kill it at random moments, and resume it with `command` until it ends."""
    chance = np.random.default_rng(kills)
    for kill in range(kills):
        seen = lines(folder)
        process = started(*command, "--resume", str(folder)) if kill else start()
        # Until it has measured something new, so that every start gets somewhere; then at any moment.
        wait_for(lambda s=seen: lines(folder) > s, process)
        time.sleep(chance.uniform(0, 0.15))
        ended = process.poll() is not None
        process.kill()
        _, errors = process.communicate()
        assert not ended, f"it ended by itself before kill {kill + 1}: {errors}"
    process = started(*command, "--resume", str(folder))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
