"""Timing of training steps in turn, their peak memory, and the arithmetic in them.

Contenders take turns, in an order that rotates; a round's ratio is a contender's time over the first one's of the same round, and
the figure is the median over all rounds. A turn is several steps where steps are short, because training repeats one model:
alternating single steps would find every cache emptied by the others, which slows the plain step most and flatters the rest by
up to 4 percent. Models are made anew several times, because where memory happens to lie shifts a contender's time by percents.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

TURN = 0.05
"""Seconds that a turn of the first contender is to last at least."""

WARM = {"cpu": 2, "cuda": 4}
"""Steps that go first wherever a contender is made: on a GPU kernels are loaded in the first, and memory settles in the next."""

CAPTURING = 4
"""Steps more that go first where they are captured: only after some is there a graph."""

ERROR = 500
"""Characters of an error that are kept; those of compilers fill pages."""

Step = Callable[[], object]
Maker = Callable[[], Step]


@dataclass(frozen=True)
class Timing:
    """One contender's time per step.

    milliseconds: the median. ratio: the median over rounds of its time over the first contender's. low, high: the ratio's
    quartiles. rounds: how many there were.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float
    rounds: int


def contest(
    makers: dict[str, Maker],
    *,
    seconds: float,
    repeats: int = 1,
    device: str = "cpu",
    failed: dict[str, str] | None = None,
    memory: dict[str, float] | None = None,
    standing: bool = False,
) -> dict[str, Timing]:
    """Name -> timing of contenders that take turns.

    Args:
        makers: each contender's maker, which builds a model and gives its step. The others are compared with the first.
        seconds: time over all contenders and repeats; more where three rounds per repeat need more.
        repeats: how many times all models are made anew.
        device: "cpu" or "cuda".
        failed: takes the error of each contender that can't be made or fails in its first steps, and so has no timing; the
            first one's is always raised; so does one whose model, its attribute `model`, is not finite in the end. None: all
            are raised.
        memory: takes, on a GPU, the most MiB that each contender had at once, as `peak_memory` has it on a CPU.
        standing: whether steps are captured ones, which take their memory once and keep it.

    >>> found = contest({"plain": lambda: lambda: None, "other": lambda: lambda: None}, seconds=0.01)
    >>> found["plain"].ratio, found["other"].rounds >= 3
    (1.0, True)
    """
    times: dict[str, list[float]] = {name: [] for name in makers}
    share = seconds / repeats
    for _ in range(repeats):
        steps: dict[str, Step] = {}
        warm: list[float] = []
        for name in list(times):
            try:
                steps[name], last, peak = _warmed(makers[name], device, standing)
            except Exception as error:
                if failed is None or not steps:
                    raise
                # The error itself would hold what its frames hold.
                failed[name] = f"{type(error).__name__}: {error}"[:ERROR]
                del times[name]
            else:
                warm.append(last)
                if memory is not None and device == "cuda":
                    memory.setdefault(name, peak)
            if name not in steps:
                release(device)
        names = list(times)
        # Not so long that fewer than some ten rounds fit.
        length = max(1, math.ceil(min(TURN, share / (10 * len(names))) / warm[0]))
        gc.collect()
        until, turn = time.perf_counter() + share, 0
        while turn < 3 or time.perf_counter() < until:
            for place in range(len(names)):
                name = names[(place + turn) % len(names)]
                times[name].append(_turn(steps[name], length, device))
            turn += 1
        for name in names:
            if not _finite(steps[name]):
                error = f"after {len(times[name])} turns weights are no longer finite: what was timed is no learning"
                if failed is None or name == names[0]:
                    raise RuntimeError(f"{name}: {error}")
                failed[name] = error
                del times[name]
    reference = next(iter(times.values()))
    return {name: _timing(own, reference) for name, own in times.items()}


def _finite(step: Step) -> bool:
    """Whether all that a step's model consists of is finite, as far as it says what its model is."""
    model = getattr(step, "model", None)
    held = {} if model is None else model.state_dict()  # Not of tensors alone.
    values = [value for value in held.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return all(bool(value.isfinite().all()) for value in values)


def _warmed(make: Maker, device: str, standing: bool) -> tuple[Step, float, float]:
    """A contender's step after its first ones, the seconds of the last, and on a GPU the most MiB that it had at once."""
    if device == "cpu":
        step = make()
        return step, [_time(step, device) for _ in range(WARM[device])][-1], math.nan
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = make()
    _time(step, device)
    if not standing:
        # What was needed to choose and load kernels is gone by now.
        torch.cuda.reset_peak_memory_stats()
    more = WARM[device] - 1 + CAPTURING * standing
    last = [_time(step, device) for _ in range(more)][-1]
    return step, last, (torch.cuda.max_memory_allocated() - before) / 2**20


def release(device: str) -> None:
    """Give back the memory of what is gone; on a GPU also what PyTorch keeps for later."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _turn(step: Step, length: int, device: str) -> float:
    """Seconds per step over a turn; where it has several, one more goes first to fill the caches."""
    if length > 1:
        step()
    return _time(step, device, length)


def _time(step: Step, device: str, length: int = 1) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(length):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / length


def _timing(times: list[float], reference: list[float]) -> Timing:
    ratios = [own / plain for own, plain in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Timing(1000 * statistics.median(times), middle, low, high, len(ratios))


def peak_memory(make: Maker) -> float:
    """The most MiB alive at once in PyTorch's allocator during a contender's first three steps, on a CPU.

    Weights, feedback, optimizer state, gradients and activations; not the interpreter, nor what kernels keep for themselves.

    >>> peak_memory(lambda: lambda: torch.zeros(2**18))  # float32
    1.0
    """
    gc.collect()
    steps: list[Step] = []
    standing, _ = _allocated(lambda: steps.append(make()))
    _, peak = _allocated(lambda: _three(steps[0]))
    return (standing + peak) / 2**20


def _three(step: Step) -> None:
    for _ in range(3):
        step()


def _allocated(act: Callable[[], None]) -> tuple[int, int]:
    """The bytes that `act` leaves allocated, and the most above the start at any moment of it."""
    # PyTorch's profiler announces itself on stderr at any other level.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        act()
    recorded: Any = profiler.profiler  # PyTorch's type stubs don't know what an event of the memory holds
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return alive, peak


def products(step: Step) -> int:
    """The floating-point operations of a step's matrix products and convolutions, additions and multiplications.

    >>> products(lambda: torch.ones(2, 3) @ torch.ones(3, 5))
    60
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """The most floating-point operations per second that a matrix product reaches here, among large square ones."""
    rates = []
    # A GPU is not filled by less, and its launches are not waited for one by one.
    sides, calls = ((512, 1024, 2048), 1) if device == "cpu" else ((4096, 8192), 5)
    source = torch.Generator(device).manual_seed(0)
    for side in sides:
        # Of noise: a GPU multiplies constants faster.
        a, b = torch.randn(2, side, side, device=device, generator=source).to(dtype)
        out = torch.mm(a, b)
        times = [_time(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, calls) for _ in range(9)]
        rates.append(2 * side**3 / statistics.median(times))
    return max(rates)
