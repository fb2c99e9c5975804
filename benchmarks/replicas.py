"""Throughput of copies in one pass against plain PyTorch backpropagation, one network after the other.

python benchmarks/replicas.py
"""

from __future__ import annotations

import torch
from torch import nn

import apical
from apical.allocator import keep_freed_memory
from apical.benchmark import training_step
from apical.losses import cross_entropy
from apical.networks import mlp
from apical.timing import Maker, Step, contest

SUBJECTS = (([30, 20, 10], 20, 1), ([784, 50, 20, 10], 20, 32), ([784, 1000, 10], 5, 64))
"""Sizes, copies, batch."""
RULES = (None, "fa", "dfa", "kp")


def together(sizes: list[int], n: int, batch: int, rule: str | None) -> Step:
    """A training step of n copies; under LocalSGD, where they have a rule."""
    copies = apical.replicate(lambda: mlp(sizes), n)
    # As indexing a data set gives it: a row of every copy's batch beside those of the others.
    x = torch.randn(batch, n, sizes[0]).transpose(0, 1)
    y = torch.randint(10, (n * batch,))
    if rule is None:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(copies.parameters(), 1e-3)
    else:
        optimizer = apical.LocalSGD(apical.attach(copies, rule, example_input=x), 1e-3)

    def step() -> None:
        (cross_entropy(copies(x).flatten(0, 1), y).sum() / batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def alone(sizes: list[int], batch: int) -> Step:
    """A training step of one network of plain PyTorch."""
    model: nn.Module = mlp(sizes)
    x, y = torch.randn(batch, sizes[0]), torch.randint(10, (batch,))
    return training_step(model, None, x, y, optimizer="SGD", setting={"foreach": False})


def main() -> None:
    """Print a row per network."""
    keep_freed_memory()
    torch.manual_seed(0)
    for sizes, n, batch in SUBJECTS:
        makers: dict[str, Maker] = {"plain": lambda sizes=sizes, batch=batch: alone(sizes, batch)}
        for rule in RULES:
            makers[rule or "plain, copies"] = lambda s=sizes, n=n, b=batch, r=rule: together(s, n, b, r)
        found = contest(makers, seconds=12, repeats=4)
        cells = ", ".join(f"{name} {n / timing.ratio:.1f}x" for name, timing in list(found.items())[1:])
        print(f"{n} copies of {'-'.join(map(str, sizes))}, batch {batch}: {cells}", flush=True)


if __name__ == "__main__":
    main()
