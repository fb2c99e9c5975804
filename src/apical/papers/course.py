"""Courses: training runs inside an experiment, measured at chosen steps, and resumed where they were stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from apical.papers.experiment import Task
from apical.papers.record import Curve

TOLD_SECONDS = 1.0
"""After so long, or every 64 steps, a course tells how far it is, and looks whether a checkpoint is due."""
Measures = Mapping[str, Sequence[float]]
"""Name of a measure -> value per seed."""


def course(
    task: Task,
    steps: int,
    *,
    learn: Callable[[int], Any],
    measure: Callable[[], Measures],
    at: Iterable[int],
    parts: Mapping[str, Any],
    name: str = "course",
    x: Callable[[int], float] = float,
    enough: Callable[[Measures], bool] | None = None,
) -> dict[str, Curve]:
    """The curves of a training run: `learn(step)` for step = 0, 1, ..., and `measure()` before the steps in `at` and at the end.

    A run that was stopped goes on at its last checkpoint with the same random numbers, and ends as one that was not stopped.

    Args:
        task: keeps the checkpoints. steps: how many. learn: makes one step. measure: value per seed of every measure.
        at: steps to measure before. parts: all that changes: anything with state_dict and load_state_dict, or a torch.Generator.
        name: of the checkpoint, where a task has several courses. x: from a step to what curves are drawn over.
        enough: stops early, given what was measured last.

    Returns:
        Measure -> curve. A course that was finished before gives its curves again, with `parts` as they were at its end.
    """
    wanted = {min(max(int(one), 0), steps) for one in at} | {steps}
    step, lines, finished = 0, [], False
    state = task.restore(name)
    if state is not None:
        step, lines, finished = state["step"], state["lines"], state["finished"]
        for key, part in parts.items():
            _load(part, state["parts"][key])
        torch.set_rng_state(state["random"])

    def save(done: bool) -> None:
        kept = {key: _state(part) for key, part in parts.items()}
        task.save(
            name, {"step": step, "lines": lines, "finished": done, "parts": kept, "random": torch.get_rng_state()}
        )

    told = time.monotonic()
    while not finished:
        if step in wanted and (not lines or lines[-1][0] != step):
            found = {key: _floats(values) for key, values in measure().items()}
            lines.append((step, found))
            finished = enough is not None and step > 0 and enough(found)
        if step == steps or finished:
            finished = True
            break
        learn(step)
        step += 1
        now = time.monotonic()
        if step % 64 == 0 or step == steps or now - told > TOLD_SECONDS:
            told = now
            task.tell(step, steps, _note(lines))
            if task.save_due:
                save(False)
    save(True)
    return curves(lines, x)


def spread(steps: int, points: int, *, logarithmic: bool = False) -> list[int]:
    """The steps to measure before: about `points` from 0 to `steps`, evenly spaced, or evenly in their logarithm after 0.

    >>> spread(100, 4)
    [0, 25, 50, 75, 100]
    """
    if steps < 1:
        return [0]
    if not logarithmic:
        return sorted({round(i * steps / points) for i in range(points + 1)})
    return sorted({0, *(round(math.exp(math.log(steps) * i / points)) for i in range(points + 1))})


def curves(lines: Sequence[tuple[int, Measures]], x: Callable[[int], float] = float) -> dict[str, Curve]:
    """The curve of each measure, from (step, measures) in order."""
    names = lines[0][1] if lines else {}
    return {
        name: Curve(
            [x(step) for step, _ in lines], [list(row) for row in zip(*(m[name] for _, m in lines), strict=True)]
        )
        for name in names
    }


def _floats(values: Sequence[float] | torch.Tensor) -> list[float]:
    if isinstance(values, torch.Tensor):
        return values.detach().double().tolist()
    return [float(value.detach() if isinstance(value, torch.Tensor) else value) for value in values]


def _state(part: Any) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _load(part: Any, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def _note(lines: Sequence[tuple[int, Measures]]) -> str:
    if not lines:
        return ""
    name, values = next(iter(lines[-1][1].items()))
    return f"{name} {sum(values) / len(values):.4g}"
