"""The benchmark: what is timed, for how long, and what was found.

All contenders of a network start from the same weights, see the same batch and use the same optimizer; how they are timed, see
`timing`. The floor is the plain network's matrix products alone, at the rate of the machine's best ones in the same precision.
Rules are compared with plain PyTorch in the same mode.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from apical.benchmark.measurement import Measurement, Missing
from apical.benchmark.steps import PLAIN, Mode, capturing, training_step
from apical.benchmark.subjects import LARGE, SUBJECTS, Subject
from apical.benchmark.timing import ERROR, Maker, Timing, contest, matrix_rate, peak_memory, products, release
from apical.checks import nearest
from apical.training.options import optimizer_of, rule_of

SETTINGS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
"""Implementations of plain SGD; the fastest one is what LocalSGD is compared with."""


COMPILED = 3
"""Compiled rules that take turns with the plain step: of eight versions of a model's code Dynamo makes no other."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """The configuration of a benchmark: what to time, and how long.

    Raises:
        ValueError: if a network, rule, optimizer or number does not fit.

    >>> BenchmarkConfig(networks=("resnet-20",))
    Traceback (most recent call last):
    ValueError: unknown network 'resnet-20' to benchmark; did you mean 'resnet20' or 'resnet50' or 'resnet18'?
    """

    networks: tuple[str, ...] = tuple(SUBJECTS)
    """Networks to time: by default those for a CPU. 3072-8192x3-10, resnet18, resnet50, vit-s16 and gpt-124m want a GPU,
    small-resnet18 much time."""
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
    """Of every contender: a class of torch.optim with options. On a GPU its fused implementation, if it has one."""
    local: bool = False
    """Rules under LocalSGD, against plain SGD in its fastest setting (for-loop, foreach or fused)."""
    mixed: bool = False
    """Also every contender under bfloat16 autocast with channels_last, in the same run."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of every contender; bfloat16 is autocast, with channels_last for images."""
    modes: tuple[Mode, ...] = ("eager",)
    """How steps run: eager, compiled (torch.compile) or captured (as one CUDA graph), each against plain in the same mode."""
    batch: int | None = None
    """Samples in a batch. None: each network's own number."""
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
            if network not in (known := {**SUBJECTS, **LARGE}):
                raise ValueError(f"unknown network {network!r} to benchmark; {nearest(network, known)}")
        for rule in self.rules:
            rule_of(rule)
        kind, options = optimizer_of(self.optimizer)
        if self.local and (
            kind is not torch.optim.SGD or {"maximize", "foreach", "fused", "differentiable"} & set(options)
        ):
            raise ValueError(f"local needs SGD with none but its numbers, got optimizer {self.optimizer!r}")
        if not self.networks or not self.rules or not self.modes:
            raise ValueError("networks, rules and modes need at least one entry each")
        for what, value, known in (
            *(("modes", mode, get_args(Mode)) for mode in self.modes),
            ("precision", self.precision, ("float32", "bfloat16")),
        ):
            if value not in known:
                raise ValueError(f"{what}: unknown {value!r}; {nearest(value, known)}")
        if "captured" in self.modes:
            capturing()
        if self.mixed and self.precision != "float32":
            raise ValueError("mixed adds bfloat16 to float32; leave out one of mixed and precision")
        if self.batch is not None and self.batch < 2:
            raise ValueError(f"batch must be at least 2, which batch normalization needs, got {self.batch}")
        if self.seconds <= 0 or self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"seconds must be positive and repeats and threads at least 1, got {self.seconds}, {self.repeats}, {self.threads}"
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but PyTorch finds no GPU here; leave it at cpu")


def run(
    config: BenchmarkConfig,
    watcher: Callable[[str], None] = lambda network: None,
    missing: list[Missing] | None = None,
) -> list[Measurement]:
    """Time every network under every rule.

    The number of threads and the random state are as before afterwards.

    Args:
        config: what to time.
        watcher: called with a network's name before it is timed.
        missing: takes what could not be timed. None: the first such error is raised.

    Returns:
        A measurement per network, mode and rule, the plain step ("plain") first of each network and mode.

    >>> found = run(BenchmarkConfig(networks=("784-50-20-10",), rules=("fa",), seconds=0.1, repeats=1))
    >>> [m.rule for m in found], found[0].timing.ratio
    (['plain', 'fa'], 1.0)
    """
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        found: list[Measurement] = []
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        rate = matrix_rate(config.device, dtype)
        for network in config.networks:
            watcher(network)
            _measure(config, network, rate, found, missing)
        return found
    finally:
        torch.set_num_threads(threads)


def _measure(
    config: BenchmarkConfig, network: str, rate: float, found: list[Measurement], missing: list[Missing] | None
) -> None:
    cuda = [torch.cuda.current_device()] if config.device == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        contests = _Contests(config, network, rate)
        for mode in config.modes:
            try:
                found += contests.measured(mode, missing)
            except Exception as error:
                if missing is None:
                    raise
                missing.append(Missing(network, mode, PLAIN, f"{type(error).__name__}: {error}"[:ERROR]))
            release(config.device)


class _Contests:
    """The contests of one network: model and batch, and the makers of its contenders."""

    def __init__(self, config: BenchmarkConfig, network: str, rate: float) -> None:
        self.config, self.network, self.rate = config, network, rate
        self.subject: Subject = {**LARGE, **SUBJECTS}[network]
        self.batch = config.batch or self.subject.batch
        self.model = self.subject.build().to(config.device)
        self.x, self.y = self.subject.draw(self.batch, config.device)

    def measured(self, mode: Mode, missing: list[Missing] | None) -> list[Measurement]:
        """Measurements in a mode, the plain step first; what fails goes to `missing`, if that is given."""
        config = self.config
        # First of all, so that on a GPU what libraries keep for themselves is there and counts as nobody's.
        floor = 1000 * products(self._maker(None, "eager", self._fused())()) / self.rate
        failed: dict[str, str] = {}
        found: dict[str, Measurement] = {}
        for makers in self._groups(mode):
            if mode == "compiled":
                torch.compiler.reset()
            memory: dict[str, float] = {}
            timings = contest(
                makers,
                seconds=config.seconds * (len(makers) - 1) / self._contenders(),
                repeats=1 if mode == "compiled" else config.repeats,
                device=config.device,
                failed=None if missing is None else failed,
                memory=memory,
                standing=mode == "captured",
            )
            memory = memory or {name: peak_memory(makers[name]) for name in timings}
            for name, timing in timings.items():
                measured = self._measurement(name, mode, timing, memory, floor)
                found.setdefault(name, measured)
            release(config.device)
        for name, error in failed.items():
            assert missing is not None
            missing.append(Missing(self.network, mode, name, error))
        return list(found.values())

    def _measurement(
        self, name: str, mode: Mode, timing: Timing, memory: dict[str, float], floor: float
    ) -> Measurement:
        return Measurement(
            self.network,
            self.batch,
            name,
            timing,
            memory[name],
            memory[name] / memory[PLAIN],
            floor / timing.milliseconds,
            mode,
            1000 * self.subject.units(self.batch) / timing.milliseconds,
            self.subject.unit,
        )

    def _groups(self, mode: Mode) -> list[dict[str, Maker]]:
        """Contenders that take turns with each other, the plain step first.

        Of large networks each captured one alone with it, since every captured step holds its memory.
        """
        config = self.config
        plain = self._fastest() if config.local else self._fused()
        makers = {PLAIN: self._maker(None, mode, plain)}
        makers |= {rule: self._maker(rule, mode, self._fused()) for rule in config.rules}
        if config.mixed:
            makers[f"{PLAIN}, bfloat16"] = self._maker(None, mode, plain, mixed=True)
            makers |= {f"{rule}, bfloat16": self._maker(rule, mode, self._fused(), mixed=True) for rule in config.rules}
        names = [name for name in makers if name != PLAIN]
        size = len(names)
        if mode == "compiled":
            size = COMPILED
        elif mode == "captured" and self.network in LARGE:
            size = 1
        parts = [names[start : start + size] for start in range(0, len(names), size)]
        return [{name: makers[name] for name in (PLAIN, *part)} for part in parts]

    def _contenders(self) -> int:
        """How many there are besides the plain step."""
        return (1 + self.config.mixed) * len(self.config.rules) + self.config.mixed

    def _maker(
        self, rule: str | None, mode: Mode, setting: dict[str, bool] | None, *, mixed: bool | None = None
    ) -> Maker:
        config = self.config
        return lambda: training_step(
            copy.deepcopy(self.model),
            rule,
            self.x,
            self.y,
            optimizer=config.optimizer,
            criterion=self.subject.criterion,
            local=config.local,
            setting=setting,
            mixed=config.precision == "bfloat16" if mixed is None else mixed,
            mode=mode,
        )

    def _fastest(self) -> dict[str, bool]:
        config = self.config
        plain = {name: self._maker(None, "eager", setting) for name, setting in SETTINGS.items()}
        found = contest(plain, seconds=config.seconds / 4, repeats=config.repeats, device=config.device)
        return SETTINGS[min(found, key=lambda name: found[name].milliseconds)]

    def _fused(self) -> dict[str, bool] | None:
        """What makes the optimizer fused on a GPU, where it can be and the user has not chosen."""
        kind, options = optimizer_of(self.config.optimizer)
        chosen = {"foreach", "fused"} & set(options)
        able = self.config.device == "cuda" and "fused" in inspect.signature(kind).parameters and not chosen
        return {"fused": True} if able else None
