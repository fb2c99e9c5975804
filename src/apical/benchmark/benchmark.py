"""Timing a whole training step of every rule against plain PyTorch backpropagation.

All contenders of a network start from the same weights, see the same batch and use the same optimizer; how they are timed, see
`timing`. The floor is the plain network's matrix products alone, at the rate of the machine's best ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor, nn

from apical.attaching.attach import attach
from apical.benchmark.timing import Maker, Step, Timing, contest, matrix_rate, peak_memory, products
from apical.checks import nearest
from apical.data import ImageData
from apical.losses import LOSSES, cross_entropy
from apical.networks import lansdell2020_cnn, mlp, parse_sizes, resnet20
from apical.optim.local_sgd import LocalSGD
from apical.training.options import making, optimizer_of, rule_of

if TYPE_CHECKING:
    from apical.comparison.config import CompareConfig


PLAIN = "plain"
SETTINGS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""Implementations of plain SGD; the fastest one is what LocalSGD is compared with."""


@dataclass(frozen=True)
class Subject:
    """A network to time, with its input shape and batch size."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


def _sizes(text: str, batch: int) -> Subject:
    sizes = parse_sizes(text)
    return Subject(lambda: mlp(sizes), (sizes[0],), batch)


SUBJECTS: dict[str, Subject] = {
    "784-50-20-10": _sizes("784-50-20-10", 32),
    "784-1000-10": _sizes("784-1000-10", 64),
    "784-800-800-10": _sizes("784-800-800-10", 64),
    "3072-1000-1000-1000-10": _sizes("3072-1000-1000-1000-10", 128),
    "lansdell2020-cnn": Subject(lansdell2020_cnn, (3, 32, 32), 64),
    "resnet20": Subject(resnet20, (3, 32, 32), 64),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What to time, and how long."""

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
    """One rule on one network.

    peak_memory: MiB; memory_ratio: to the plain step's. share: of the floor, its time over the step's.
    """

    network: str
    batch: int
    rule: str
    timing: Timing
    peak_memory: float
    memory_ratio: float
    share: float = math.nan

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def training_step(
    model: nn.Module,
    rule: str | None,
    x: Tensor,
    y: Tensor,
    *,
    optimizer: str,
    learning_rate: float = 1e-4,
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    local: bool = False,
    setting: dict[str, bool] | None = None,
    mixed: bool = False,
) -> Step:
    """The whole step of a training loop: forward, loss, backward, adapt, optimizer; `rule` None for plain PyTorch.

    local: update inside the backward pass. mixed: bfloat16 autocast and, for images, channels_last.
    setting: implementation of PyTorch's optimizer, e.g. {"fused": True}.
    """
    model.train()
    if mixed and x.dim() == 4:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = (
        None
        if rule is None
        else attach(model, rule_of(rule), example_input=x[:2], generator=torch.Generator().manual_seed(1))
    )
    kind, options = optimizer_of(optimizer, lr=learning_rate)
    if local and learner is not None:
        stepper: torch.optim.Optimizer = LocalSGD(learner, **options)
    else:
        with making("optimizer", optimizer, kind):
            stepper = kind(model.parameters(), **{**options, **(setting or {})})

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
            loss = criterion(model(x), y).mean()
        loss.backward()
        if learner is not None:
            learner.adapt(x, y, criterion)
        stepper.step()
        stepper.zero_grad()

    return step


def run(config: BenchmarkConfig, watcher: Callable[[str], None] = lambda network: None) -> list[Measurement]:
    """Time every network under every rule; `watcher(network)` is called before each network."""
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


def table(measurements: list[Measurement]) -> Table:
    """Ratios to the plain step, a row per rule and a column per network; peak memory's ratio in brackets.

    The row of the plain step has milliseconds, MiB, and its share of the floor.
    """
    networks = list(dict.fromkeys(m.network for m in measurements))
    rules = list(dict.fromkeys(m.rule for m in measurements))
    result = Table(
        title="Time of a training step / plain PyTorch backpropagation (peak memory / plain)", title_justify="left"
    )
    result.add_column("rule", style="bold")
    for network in networks:
        batch = next(m.batch for m in measurements if m.network == network)
        # Names that are cut short would look alike.
        result.add_column(f"{network}, {batch}", justify="right", overflow="fold")
    for rule in rules:
        cells = {m.network: m for m in measurements if m.rule == rule}
        result.add_row(rule, *(_cell(cells[network]) for network in networks), end_section=rule == PLAIN)
    return result


def _cell(m: Measurement) -> str:
    if m.rule == PLAIN:
        share = "" if math.isnan(m.share) else f"\n{100 * m.share:.0f} % of floor"
        return f"{m.timing.milliseconds:.2f} ms\n{m.peak_memory:.{0 if m.peak_memory >= 10 else 1}f} MiB{share}"
    return f"{m.timing.ratio:.2f} ({m.memory_ratio:.2f})"


def step_ratios(config: CompareConfig, data: ImageData, *, seconds: float = 6.0) -> dict[str, float]:
    """Each rule's time per step on a comparison's own network and data, as a ratio to plain backpropagation."""
    from apical.training.setup import make

    with torch.random.fork_rng():
        model = make(config, rule_of("bp"), config.first_seed, data)[1].detach()
        x, y = data.train.batch(torch.arange(min(config.batch, len(data.train))))

        def maker(rule: str | None) -> Maker:
            return lambda: training_step(
                copy.deepcopy(model),
                rule,
                x,
                y,
                optimizer=config.optimizer,
                learning_rate=config.rate,
                criterion=LOSSES[config.loss],
            )

        makers = {PLAIN: maker(None), **{rule: maker(rule) for rule in config.rules}}
        timings = contest(makers, seconds=seconds, repeats=2)
    return {rule: timings[rule].ratio for rule in config.rules}
