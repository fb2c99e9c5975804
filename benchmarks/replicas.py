"""Throughput of copies in one pass against one network after the other.

python benchmarks/replicas.py            replicas under LocalSGD against plain PyTorch backpropagation
python benchmarks/replicas.py compare    the seeds of `apical compare`, trained together or one by one
"""

from __future__ import annotations

import dataclasses
import math
import sys

import torch
from torch import nn

import apical
from apical.benchmark import training_step
from apical.benchmark.timing import Maker, Step, contest
from apical.cli.allocator import keep_freed_memory
from apical.data import ImageData, Split
from apical.losses import cross_entropy
from apical.networks import mlp, parse_sizes
from apical.training import TrainConfig
from apical.training.networks import OneNetwork
from apical.training.session import Networks
from apical.training.side_by_side import SideBySide

SUBJECTS = (([30, 20, 10], 20, 1), ([784, 50, 20, 10], 20, 32), ([784, 1000, 10], 5, 64))
"""Sizes, copies, batch."""
COMPARED = (
    ("64-100-50-10", 64, (2, 3, 5, 20)),
    ("784-50-20-10", 32, (3, 20)),
    ("784-200-10", 64, (2, 3, 5, 20)),
    ("784-500-10", 64, (3, 5)),
    ("784-1000-10", 64, (3, 5)),
    ("784-800-800-10", 64, (3,)),
)
"""Networks, batch, numbers of seeds."""
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


def noise_images(features: int) -> ImageData:
    """Pixels without meaning: what a step costs does not depend on them."""
    side = math.isqrt(features)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2000, 1, side, features // side), generator=generator, dtype=torch.uint8)
    split = Split(pixels, torch.randint(10, (2000,), generator=generator))
    return ImageData("noise", split, split, 10, tuple("0123456789"))


def steps_of(networks: Networks, data: ImageData) -> Step:
    """A training step of `apical compare`'s own loop."""

    def endless():
        while True:
            yield from data.train.batches(networks.configs[0].batch, networks.seed, 0)

    batches = endless()
    return lambda: networks.learn(*next(batches), check=lambda losses: losses.tolist())


def compare() -> None:
    """Print a row per network and rule."""
    for network, batch, numbers in COMPARED:
        data = noise_images(parse_sizes(network)[0])
        for rule in ("fa", "kp", "wm"):
            config = TrainConfig(network=network, batch=batch, rule=rule, accelerator="cpu")
            makers: dict[str, Maker] = {
                "alone": lambda config=config, data=data: steps_of(OneNetwork(config, data), data)
            }
            for n in numbers:
                seeds = [dataclasses.replace(config, seed=seed) for seed in range(n)]
                makers[str(n)] = lambda s=seeds, d=data: steps_of(SideBySide(s, d), d)
            found = contest(makers, seconds=8, repeats=2)
            cells = ", ".join(f"{n} seeds {int(n) / timing.ratio:.2f}x" for n, timing in list(found.items())[1:])
            print(f"{network}, batch {batch}, {rule}: {cells}", flush=True)


def main() -> None:
    """Print a row per network."""
    keep_freed_memory()
    torch.manual_seed(0)
    if sys.argv[1:] == ["compare"]:
        compare()
        return
    for sizes, n, batch in SUBJECTS:
        makers: dict[str, Maker] = {"plain": lambda sizes=sizes, batch=batch: alone(sizes, batch)}
        for rule in RULES:
            makers[rule or "plain, copies"] = lambda s=sizes, n=n, b=batch, r=rule: together(s, n, b, r)
        found = contest(makers, seconds=12, repeats=4)
        cells = ", ".join(f"{name} {n / timing.ratio:.1f}x" for name, timing in list(found.items())[1:])
        print(f"{n} copies of {'-'.join(map(str, sizes))}, batch {batch}: {cells}", flush=True)


if __name__ == "__main__":
    main()
