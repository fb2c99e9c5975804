"""What a run measures of alignment, as its metrics hold it."""

from __future__ import annotations

import math
from typing import Any

from apical.data.images import Split
from apical.learner import Learner
from apical.measures.alignment import alignment
from apical.training.setup import Engine

SAMPLES = 256


def aligned(learner: Learner, split: Split, engine: Engine) -> dict[str, dict[str, float | None]]:
    """Module name -> measure -> number, by the first samples of a split; None where there is no finite number."""
    x, y = split.first(min(SAMPLES, split.at_once), device=engine.fabric.device)
    learner.model.eval()
    found = alignment(learner, engine.taken(x), y, engine.criterion)
    return {name: {k: _number(v) for k, v in a.asdict().items()} for name, a in found.items()}


def _number(value: Any) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None
