"""Signals that ask a run to stop: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):  # noqa: N818
    """A stop by the user, at a step from which the run can be resumed; no error, hence the name.

    status: of a process that ends so: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    >>> raise Interrupted("stopped at step 3 of 10; the run in runs/one can be resumed")
    Traceback (most recent call last):
    apical.training.stopping.Interrupted: stopped at step 3 of 10; the run in runs/one can be resumed
    """

    status: int = 130


class Ended(KeyboardInterrupt):
    """The end of a process by a signal that does not wait for a step's end. status: as that of `Interrupted`."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """A function that says whether to stop at the next step's end: Ctrl-C was pressed, or SIGTERM or SIGHUP came.

    A second one stops at once; more do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def handler(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) == 2:
            raise Ended(number)

    with handled(handler):
        try:
            yield lambda: bool(asked)
        except Interrupted as error:
            if asked:
                error.status = 128 + asked[0]
            raise


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have signals that ask a process to end handled so meanwhile. Whoever ignores one, as nohup does, goes on ignoring it."""
    kept = [one for one in _asking() if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in kept}
    try:
        yield
    finally:
        for number, one in before.items():
            if one is not None:  # None: a handler that Python did not set.
                signal.signal(number, one)


def ignore() -> None:
    """Have signals that ask a process to end do nothing from now on, as it is ending."""
    for number in _asking():
        signal.signal(number, signal.SIG_IGN)


def _asking() -> list[int]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
