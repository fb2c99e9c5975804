"""Ridge regression of feedback while the weights stand still, over batches that grow with what was seen before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

import apical
from apical.learner import Criterion
from apical.papers.course import Measures, course, spread
from apical.papers.experiment import Task
from apical.papers.lansdell2020.common import BATCH
from apical.papers.record import Curve

GROWTH = 32
LARGEST = 8192

Draw = Callable[[int], tuple[Tensor, Tensor]]
"""draw(rows) -> inputs and targets."""


def batches(samples: int, growth: int = GROWTH) -> list[int]:
    """Sizes of batches that add up to `samples`: from the paper's 32 on, each at most 1/growth of those before it, or 8192.

    With weights that stand still the sums V and S are those of batches of 32, but for errors that come through feedback of
    other layers, which is then as much as one batch old.

    >>> batches(100)
    [32, 32, 32, 4]
    """
    sizes: list[int] = []
    seen = 0
    while seen < samples:
        sizes.append(min(max(BATCH, seen // (growth * BATCH) * BATCH), LARGEST, samples - seen))
        seen += sizes[-1]
    return sizes


def regress(
    task: Task,
    learner: apical.Learner,
    samples: int,
    *,
    draw: Draw,
    stream: torch.Generator,
    criterion: Criterion,
    measure: Callable[[], Measures],
    growth: int = GROWTH,
    name: str = "course",
) -> dict[str, Curve]:
    """Let feedback learn from `samples` samples.

    Returns:
        Measure -> curve over the number of samples.
    """
    sizes = batches(samples, growth)
    seen = [0, *accumulate(sizes)]
    points = max(4, min(60, len(sizes) // 4))
    at = {next(i for i, n in enumerate(seen) if n >= point) for point in spread(samples, points, logarithmic=True)}

    def learn(step: int) -> None:
        learner.adapt(*draw(sizes[step]), criterion)

    parts = {"model": learner.model, "learner": learner, "stream": stream}
    return course(
        task,
        len(sizes),
        learn=learn,
        measure=measure,
        at=[one for one in at if one > 0],
        parts=parts,
        name=name,
        x=lambda step: float(seen[step]),
    )
