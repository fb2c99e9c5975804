"""A stage that ends stops the others, which say which one it was."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.networks_in_stages import in_stages, made
from processes import Forked, free_port

AT = 2


def learn_until(rank: int, count: int, port: int, ends: int, how: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=count)
    run = in_stages("mlp", "dfa", timeout=1.0 if how == "sleeps" else 60.0)
    _, [(x, y), *_], _ = made("mlp")

    def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return losses if how == "errs" and number == AT else losses.mean()

    start = time.monotonic()
    try:
        for number in range(2 * AT):
            start = time.monotonic()
            if number == AT and rank == ends and how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == AT and rank == ends and how == "sleeps":
                time.sleep(6)
            run.step(x, y, criterion)
        print("it went on")
    except (RuntimeError, ValueError) as error:
        print(f"{time.monotonic() - start:.1f} s; {type(error).__name__}: {error}", flush=True)
    if how == "errs":
        time.sleep(1)  # Nobody has to end for the others to hear of it.
    try:
        run.step(x, y, criterion)
    except RuntimeError as error:
        print(f"then: {error}", flush=True)


@pytest.mark.parametrize(
    ("count", "ends", "how", "said"),
    [
        (3, 1, "killed", "stops: stage 1 has ended; its own output says why"),
        (2, 0, "killed", "stops: stage 0 has ended; its own output says why"),
        (2, 1, "errs", "stops: stage 1 has stopped by ValueError: the criterion has to give one number"),
        pytest.param(
            2, 1, "sleeps", "stops: another one has not answered for 1 s, and none has ended", marks=pytest.mark.slow
        ),
    ],
)
def test_the_others_stop_and_name_it(count, ends, how, said):
    port = free_port()
    ranks = [Forked(learn_until, rank, count, port, ends, how) for rank in range(count)]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    for rank, output in enumerate(told):
        if rank != ends:
            assert f"PeerLostError: stage {rank} of {count} {said}" in output
            assert float(output.split(" s;")[0]) < 10
            assert "then: this pipeline has stopped: " in output
    if how == "errs":
        assert "ValueError: the criterion has to give one number, the batch's loss, got shape [16]" in told[ends]
    elif how == "killed":
        assert ranks[ends].returncode == -signal.SIGKILL
