"""apical in other processes: interrupted, by a kill or by what watches it, and on two ranks at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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


def on_two_ranks(learn: Callable[..., object], folder: Path, *arguments: object) -> list:
    """What `learn(rank, *arguments)` returns in each of two processes that know each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_on_a_rank, args=(port, folder, learn, arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _on_a_rank(rank: int, port: int, folder: Path, learn: Callable[..., object], arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(learn(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
