"""`apical train` in several processes that know each other, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from apical.cli.command_line import main
from faults.campaign.children import Child, fork


def on_ranks(cwd: Path, *options: object, count: int = 2) -> list[Child]:
    """`apical` with these options in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [str(one) for one in options]

    def call(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
        os.environ.update({key: str(value) for key, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="faults")
        sys.argv = ["apical", *argv]
        main(argv)

    return [fork(lambda rank=rank: call(rank), cwd / f"rank{rank}", cwd=cwd, name=rank) for rank in range(count)]
