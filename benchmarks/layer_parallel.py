"""Steps of a network that two or more processes learn in stages, against one process's, one thread each.

torchrun --nproc-per-node 2 -m benchmarks.layer_parallel [--batch 1024] [--network 3072-1000-1000-1000-10] [--rule dfa]

Rounds alternate: one process on the whole batch, one process on the same microbatches, and all processes in stages. A row gives
medians and quartiles of the time of a step, the medians of the rounds' own ratios, and how long the busiest process computes,
which a loaded machine changes less. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

import apical
from apical.cli.allocator import keep_freed_memory
from apical.networks import mlp, parse_sizes
from apical.parallel import pipeline

ONE, PIECES, STAGES = "one process", "one process, same microbatches", "stages"


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


def alone(network: list[int], rule: str, x: Tensor, y: Tensor, pieces: int) -> Callable[[], None]:
    """A step of one process, of gradients that are accumulated over so many pieces of the batch."""
    torch.manual_seed(0)
    model = mlp(network)
    apical.attach(model, rule, example_input=x[:2], generator=torch.Generator().manual_seed(0))
    optimizer, criterion = sgd(list(model.parameters())), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            (criterion(model(a), b) / pieces).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], object], count: int) -> tuple[float, float]:
    """Of one step, from when all processes are there until all are done; and of computing, in the busiest process."""
    distributed.barrier()
    start, busy = time.perf_counter(), time.thread_time()
    for _ in range(count):
        step()
    computed = torch.tensor(time.thread_time() - busy)
    distributed.barrier()
    wall = time.perf_counter() - start
    distributed.all_reduce(computed, distributed.ReduceOp.MAX)
    return wall / count, float(computed) / count


def told(times: list[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{1e3 * middle:.1f} ms ({1e3 * low:.1f}-{1e3 * high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="3072-1000-1000-1000-10")
    parser.add_argument("--rule", default="dfa")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[8])
    parser.add_argument("--split", nargs="*")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group("gloo")
    rank, network = distributed.get_rank(), parse_sizes(options.network)
    if not rank:
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        print(f"{options.network}, {options.rule}; PyTorch {torch.__version__}, {platform.processor()}, {when} UTC")
    for batch in options.batch:
        for microbatches in options.microbatches:
            torch.manual_seed(0)
            x, y = torch.randn(batch, network[0]), torch.randint(network[-1], (batch,))
            torch.manual_seed(0)
            run = pipeline(
                mlp(network),
                options.rule,
                example_input=x[:2],
                optimizer=sgd,
                microbatches=microbatches,
                split=options.split,
                generator=torch.Generator().manual_seed(0),
            )
            criterion = nn.CrossEntropyLoss()

            def staged(run=run, x=x, y=y, criterion=criterion) -> None:
                run.step(x, y, criterion)

            ways: dict[str, Callable[[], object]] = {
                ONE: alone(network, options.rule, x, y, 1),
                PIECES: alone(network, options.rule, x, y, microbatches),
            }
            if rank:
                ways = dict.fromkeys(ways, lambda: None)
            ways[STAGES] = staged
            times: dict[str, list[float]] = {name: [] for name in ways}
            busy: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(options.rounds + 1):
                for name, way in ways.items():
                    wall, computing = seconds(way, options.steps)
                    if number:  # The first one warms up.
                        times[name].append(wall)
                        busy[name].append(computing)
            if not rank:
                shares = " + ".join(f"{share:.2f}" for share in run.costs)
                print(f"batch {batch}, {microbatches} microbatches, stages of {shares}:")
                for name, own in times.items():
                    quick = statistics.median(a / b for a, b in zip(own, times[STAGES], strict=True))
                    least = min(own) / min(times[STAGES])
                    share = statistics.median(busy[name]) / statistics.median(busy[STAGES])
                    print(f"  {name}: {told(own)}; {quick:.2f}x the time in stages (of minima {least:.2f}x); ", end="")
                    print(f"computing {told(busy[name])}, {share:.2f}x", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
