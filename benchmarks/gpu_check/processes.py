"""DistributedDataParallel over two processes against one process with the whole batch.

NCCL where there are two GPUs; else gloo, on a GPU with both processes on it.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from benchmarks.gpu_check import common
from benchmarks.gpu_check.common import Check, Where, batch, chain, criterion, distance, state
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import apical

Found = dict[str, dict[str, Tensor]]


def checks(where: Where) -> Iterator[Check]:
    yield Check("processes", lambda: processes(where), 120.0, 30.0)


def processes(where: Where) -> dict[str, float]:
    """Relative errors of three steps in float64, by rule; where processes draw noise of their own, of one against the other."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        spawn(_process, args=(port, folder, where), nprocs=2)
        first, second = (torch.load(Path(folder) / f"{rank}.pt", map_location="cpu") for rank in range(2))
    found = {}
    for rule in common.RULES:
        found[rule] = distance(second[rule], first[rule], 1e-12)
        if rule not in common.DRAWING:
            x, y = batch(where, torch.float64)
            model = chain(where).double().to(where.device)
            common.attach(model, rule, x)
            _learn(model, model, x, y)
            found[rule] = distance(first[rule], state(model), 1e-9)
    return found


def _process(rank: int, port: int, folder: str, where: Where) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    several = where.device == "cuda" and torch.cuda.device_count() > 1
    if where.device == "cuda":
        torch.cuda.set_device(rank if several else 0)
    dist.init_process_group("nccl" if several else "gloo", rank=rank, world_size=2)
    torch.save(_all_rules(rank, where), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _all_rules(rank: int, where: Where) -> Found:
    found: Found = {}
    x, y = batch(where, torch.float64)
    half = slice(0, len(x) // 2) if rank == 0 else slice(len(x) // 2, len(x))
    for rule in common.RULES:
        model = chain(where).double().to(where.device)
        learner = common.attach(model, rule, x)
        unused = rule in ("reinforce", "shallow")
        ranks = DistributedDataParallel(model, find_unused_parameters=unused)
        _learn(model, ranks, x[half], y[half])
        found[rule] = {name: value.cpu() for name, value in state(model).items()}
        learner.detach()
    return found


def _learn(model: torch.nn.Module, call: torch.nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    learner = apical.learner_of(model)
    for _ in range(3):
        criterion(call(x), y).mean().backward()
        learner.adapt(x, y, criterion)
        optimizer.step()
        optimizer.zero_grad()
