"""How the matrix products of a step are best made on a CPU: the table in README.md. Run it on a quiet machine.

python benchmarks/products.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from apical.cli.allocator import keep_freed_memory

FORWARD = ((64, 800, 800), (64, 3072, 1000), (128, 1000, 1000), (128, 2048, 2048), (256, 1000, 1000))
SIGNAL = ((64, 800, 800), (128, 1000, 1000), (64, 2048, 2048), (64, 1000, 3072))
UPDATE = ((800, 64, 800), (1000, 128, 3072))
NARROW = ((64, 10, 800), (64, 10, 4096), (64, 10, 16384), (64, 100, 16384))


def microseconds(ways: dict[str, Callable[[], Tensor]], rounds: int = 60) -> dict[str, float]:
    """Median time of each way, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            start = time.perf_counter()
            way()
            way()
            times[name].append((time.perf_counter() - start) / 2)
    return {name: 1e6 * statistics.median(own) for name, own in times.items()}


def forward(x: Tensor, W: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to make a linear layer's output."""
    return {
        "F.linear": lambda: F.linear(x, W, b),
        "turned round": lambda: torch.addmm(b[:, None], W, x.t()).t().contiguous(),
    }


def products(a: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to make a b."""
    n, columns = len(a), b.shape[1]
    return {
        "mm": lambda: torch.mm(a, b),
        "added to zeros": lambda: torch.zeros(n, columns).addmm_(a, b),
        "turned round": lambda: torch.mm(b.t(), a.t()).t().contiguous(),
        "blocks of 8 rows": lambda: torch.bmm(a.unflatten(0, (-1, 8)), b.expand(n // 8, *b.shape)),
    }


def main() -> None:
    """Print a row per product."""
    keep_freed_memory()
    torch.manual_seed(0)
    for kind, rows in (("forward", FORWARD), ("signal", SIGNAL), ("update", UPDATE), ("narrow signal", NARROW)):
        for n, inner, columns in rows:
            a = torch.randn(inner, n).t() if kind == "update" else torch.randn(n, inner)
            if kind == "forward":
                ways = forward(a, torch.randn(columns, inner), torch.randn(columns))
            else:
                ways = products(a, torch.randn(inner, columns))
            cells = ", ".join(f"{name} {value:.0f}" for name, value in microseconds(ways).items())
            print(f"{kind}, {n} x {inner} times {inner} x {columns}: {cells}", flush=True)


if __name__ == "__main__":
    main()
