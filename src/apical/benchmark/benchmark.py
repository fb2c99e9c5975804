"""The benchmark: what is timed, for how long, and what was found.

All contenders of a network start from the same weights, see the same batch and use the same optimizer; how they are timed, see
`timing`. The floor is the plain network's matrix products alone, at the rate of the machine's best ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from apical.benchmark.steps import PLAIN, training_step
from apical.benchmark.subjects import SUBJECTS
from apical.benchmark.timing import Maker, Timing, contest, matrix_rate, peak_memory, products
from apical.checks import nearest
from apical.training.options import optimizer_of, rule_of

SETTINGS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""Implementations of plain SGD; the fastest one is what LocalSGD is compared with."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """The configuration of a benchmark: what to time, and how long.

    Raises:
        ValueError: if a network, rule, optimizer or number does not fit.

    >>> BenchmarkConfig(networks=("resnet-20",))
    Traceback (most recent call last):
    ValueError: unknown network 'resnet-20' to benchmark; did you mean 'resnet20'?
    """

    networks: tuple[str, ...] = tuple(SUBJECTS)
    """Networks to time; their batch sizes are fixed."""
    rules: tuple[str, ...] = (
        "bp",
        "fa",
        "frfb",
        "usf",
        "frsf",
        "dfa",
        "kp",
        "urfb",
        "wm",
        "np",
        "np-direct",
        "sg",
    )
    """Rules to time against plain PyTorch backpropagation."""
    optimizer: str = "SGD:momentum=0.9"
    """Of every contender: a class of torch.optim with options."""
    local: bool = False
    """Rules under LocalSGD, against plain SGD in its fastest setting (for-loop, foreach or fused)."""
    mixed: bool = False
    """Also every contender under bfloat16 autocast with channels_last, in the same run."""
    seconds: float = 30.0
    """Time per network, over all contenders and repeats; more where three rounds per repeat need more."""
    repeats: int = 4
    """How many times all models are made anew."""
    threads: int | None = None
    """Threads of PyTorch. None: as PyTorch chooses."""
    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        for network in self.networks:
            if network not in SUBJECTS:
                raise ValueError(f"unknown network {network!r} to benchmark; {nearest(network, SUBJECTS)}")
        for rule in self.rules:
            rule_of(rule)
        kind, options = optimizer_of(self.optimizer)
        if self.local and (
            kind is not torch.optim.SGD or {"maximize", "foreach", "fused", "differentiable"} & set(options)
        ):
            raise ValueError(f"local needs SGD with none but its numbers, got optimizer {self.optimizer!r}")
        if not self.networks or not self.rules:
            raise ValueError("networks and rules need at least one entry each")
        if self.seconds <= 0 or self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"seconds must be positive and repeats and threads at least 1, got {self.seconds}, {self.repeats}, {self.threads}"
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but PyTorch finds no GPU here; leave it at cpu")


@dataclass(frozen=True)
class Measurement:
    """The measurement of one rule's step on one network.

    peak_memory: MiB. memory_ratio: peak memory over the plain step's.
    share: time of the floor over the step's time, 1 where a step takes no longer than its matrix products.
    """

    network: str
    batch: int
    rule: str
    timing: Timing
    peak_memory: float
    memory_ratio: float
    share: float = math.nan

    def asdict(self) -> dict[str, Any]:
        """The measurement as JSON holds it."""
        return asdict(self)


def run(config: BenchmarkConfig, watcher: Callable[[str], None] = lambda network: None) -> list[Measurement]:
    """Time every network under every rule.

    The number of threads and the random state are as before afterwards.

    Args:
        config: what to time.
        watcher: called with a network's name before it is timed.

    Returns:
        A measurement per network and rule, the plain step ("plain") first of each network.

    >>> found = run(BenchmarkConfig(networks=("784-50-20-10",), rules=("fa",), seconds=0.1, repeats=1))
    >>> [m.rule for m in found], found[0].timing.ratio
    (['plain', 'fa'], 1.0)
    """
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        found = []
        rate = matrix_rate(config.device)
        for network in config.networks:
            watcher(network)
            found += _measure(config, network, rate)
        return found
    finally:
        torch.set_num_threads(threads)


def _measure(config: BenchmarkConfig, network: str, rate: float) -> list[Measurement]:
    subject = SUBJECTS[network]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = subject.build().to(config.device)
        x = torch.randn(subject.batch, *subject.shape, device=config.device)
        y = torch.randint(10, (subject.batch,), device=config.device)

        def maker(rule: str | None, setting: dict[str, bool] | None = None, *, mixed: bool = False) -> Maker:
            return lambda: training_step(
                copy.deepcopy(model),
                rule,
                x,
                y,
                optimizer=config.optimizer,
                local=config.local,
                setting=setting,
                mixed=mixed,
            )

        fastest: dict[str, bool] | None = None
        if config.local:
            plain = {name: maker(None, setting) for name, setting in SETTINGS.items()}
            found = contest(plain, seconds=config.seconds / 4, repeats=config.repeats, device=config.device)
            fastest = SETTINGS[min(found, key=lambda name: found[name].milliseconds)]
        makers = {PLAIN: maker(None, fastest), **{rule: maker(rule) for rule in config.rules}}
        if config.mixed:
            makers[f"{PLAIN}, bfloat16"] = maker(None, fastest, mixed=True)
            makers |= {f"{rule}, bfloat16": maker(rule, mixed=True) for rule in config.rules}
        timings = contest(makers, seconds=config.seconds, repeats=config.repeats, device=config.device)
        memory = {name: peak_memory(make, config.device) for name, make in makers.items()}
        floor = 1000 * products(makers[PLAIN]()) / rate
    return [
        Measurement(
            network,
            subject.batch,
            name,
            timing,
            memory[name],
            memory[name] / memory[PLAIN],
            floor / timing.milliseconds,
        )
        for name, timing in timings.items()
    ]
