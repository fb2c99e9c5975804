"""One line of a queue in a process of its own: `python -m apical.cli.folders.worker QUEUE PARENT WORD...`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from apical.cli.command_line import main
from apical.queue.lines import Line
from apical.queue.queue import GRACE, Queue


def work(folder: str, *words: str) -> None:
    """Do a line in the queue's folder, and end with the status of its command."""
    line = Line(0, words)
    sys.exit(Queue(Path(folder), [line]).do(line, _status))


def _status(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _end_with(parent: int) -> None:
    """End when the parent does, with a checkpoint."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    work(sys.argv[1], *sys.argv[3:])
