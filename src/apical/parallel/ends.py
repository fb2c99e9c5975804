"""When a stage has ended, the others are to stop as well, and to say which one it was.

A connection to a process that has ended is closed, which whoever waits for it is told of at once. That may be a stage that has
itself stopped because of another one. So a stage that stops writes why to the store of the group before it closes its
connections; and who is not there any more and has written nothing has ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from apical.distributed import PeerLostError, lost_peer

SECONDS = 3.0
"""How long the others are asked whether they are there."""
_FOLLOWS = "follows"


class Roll:
    """Who is still there of the processes of a pipeline.

    Args:
        stages: how many. stage: this one's number. timeout: seconds after which a stage that does not answer is given up.
    """

    def __init__(self, stages: int, stage: int, timeout: float) -> None:
        self.stages, self.stage, self.timeout = stages, stage, timeout
        self.group, self._calls = _group(timeout), _group(SECONDS, "gloo")
        self._store: Any = self.group.get_group_store()
        self.over: str | None = None

    def stop(self, error: Exception) -> PeerLostError | None:
        """Take in that this stage can't go on; what to say where the reason is another one."""
        peer = lost_peer(error)
        try:
            self.over = self._reason() if peer else f"{type(error).__name__}: {error}".split("\n")[0]
            self._ask(lambda store: store.set(f"stopped {self.stage}", _FOLLOWS if peer else self.over))
        finally:
            self._close()
        if not peer:
            return None
        return PeerLostError(
            f"stage {self.stage} of {self.stages} stops: {self.over}; its own output says why. Start all of them again, from the "
            "states that were kept"
        )

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """What the store answers; None where it is gone with the process that kept it, which is not asked again."""
        try:
            return None if self._store is None else question(self._store)
        except RuntimeError:
            self._store = None
            return None

    def _reason(self) -> str:
        """Which stages have ended of themselves, in words."""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            gone = {other: self._why(other) for other in range(self.stages) if not self._answers(other)}
            found = [sentence for sentence in gone.values() if sentence]
            if found:
                # Without the store nobody knows who has followed the process that kept it.
                return gone[0] if self._store is None and gone.get(0) else " and ".join(found)  # type: ignore[return-value]
            time.sleep(0.02)
        return f"another one has not answered for {self.timeout:g} s, and none has ended"

    def _answers(self, other: int) -> bool:
        """Whether the connection to another stage is open. Nobody waits for the word that is sent."""
        if other == self.stage:
            return True
        try:
            distributed.isend(torch.zeros(1), group=self._calls, group_dst=other)
        except RuntimeError:
            return False
        return True

    def _why(self, other: int) -> str | None:
        """Why another stage is gone; None if it has stopped because of one."""
        key = f"stopped {other}"
        word = self._ask(lambda store: store.get(key).decode() if store.check([key]) else None)
        if word == _FOLLOWS:
            return None
        return f"stage {other} has ended" if word is None else f"stage {other} has stopped by {word}"

    def _close(self) -> None:
        for group in (self.group, self._calls):
            with contextlib.suppress(RuntimeError, ValueError, AssertionError):
                distributed.destroy_process_group(group)


def _group(seconds: float, backend: str | None = None) -> distributed.ProcessGroup:
    made = distributed.new_group(timeout=timedelta(seconds=seconds), backend=backend)
    assert isinstance(made, distributed.ProcessGroup)
    return made
