"""apical in other processes: interrupted, by a kill or by what watches it, and on two ranks at once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("apical.cli.command_line", "apical.comparison", "apical.parallel"),
        *("lightning_fabric", "pytest", "sklearn.datasets", "torch._dynamo"),
    ]
)
"""Processes are forked from one that has imported everything and done nothing: imports take seconds, and PyTorch can't be
forked after a backward pass where there is a GPU."""


class BoomError(Exception):
    """What ends a run in the middle."""


def boom_at(limit: int) -> Callable[[int, int, object], None]:
    """A watcher that ends a run after so many steps."""

    def watcher(step: int, steps: int, newest: object) -> None:
        if step == limit:
            raise BoomError

    return watcher


class Forked:
    """`call(*arguments)` in a process of its own, in this folder and environment; it has what Popen has."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self._written = tempfile.TemporaryDirectory()
        files = [str(Path(self._written.name, name)) for name in ("out", "err")]
        self._process = FORKS.Process(target=_forked, args=(files, dict(os.environ), call, arguments), daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        out, err = (Path(self._written.name, name).read_text() for name in ("out", "err"))
        self._written.cleanup()
        return out, err


def _forked(files: list[str], environment: dict[str, str], call: Callable[..., object], arguments: tuple) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    call(*arguments)


def apical(*options: str) -> None:
    """`python -m apical` with these options, in this process."""
    sys.argv = ["apical", *options]
    runpy.run_module("apical", run_name="__main__", alter_sys=True)


def started(*options: str) -> Forked:
    """`apical` with these options."""
    return Forked(apical, *options)


def wait_for(condition: Callable[[], bool], process: Forked | subprocess.Popen, seconds: float = 90) -> None:
    """Return when the condition holds, the process has ended, or the time is over."""
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)


def lines(folder: Path) -> int:
    """How many lines of metrics lie in a folder, and below."""
    return sum(path.read_text().count("\n") for path in folder.rglob("metrics.jsonl"))


def killed_and_resumed(kills: int, folder: Path, start: Callable[[], Forked], *command: str) -> None:
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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def as_torchrun_starts(rank: int, port: int) -> None:
    """This process becomes one of two that torchrun started."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="one",
    )


def on_two_ranks(learn: Callable[..., object], folder: Path, *arguments: object) -> list:
    """What `learn(rank, *arguments)` returns in each of two processes that know each other."""
    return on_ranks(2, learn, folder, *arguments)


def on_ranks(count: int, learn: Callable[..., object], folder: Path, *arguments: object) -> list:
    """What `learn(rank, *arguments)` returns in each of so many processes that know each other."""
    options = (count, free_port(), folder, learn, arguments)
    mp.start_processes(_on_a_rank, args=options, nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _on_a_rank(rank: int, count: int, port: int, folder: Path, learn: Callable[..., object], arguments: tuple) -> None:
    torch.set_num_threads(1)
    gc.freeze()  # What is imported is no garbage to search.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=count)
    torch.save(learn(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
