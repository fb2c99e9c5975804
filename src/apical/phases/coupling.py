"""Whether samples of a batch depend on each other, so that the noise of one shows in the losses of others."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from apical.phases.clean_pass import CleanPass
    from apical.phases.layout import Criterion


def coupled(clean: CleanPass, places: list[str]) -> bool:
    """Whether losses of samples depend on what other samples have at the places: contrastive losses, nodes of a graph.

    Asked once for each criterion, by one backpropagation of half of the samples' losses: does it reach the other half? What
    batch normalizations in training mode share does not count, because noisy passes hold it.
    """
    recorder, rows = clean.learner.phases.recorder, len(clean.losses)
    assert recorder is not None
    kind = _kind(clean.criterion)
    if kind in recorder.coupled or rows < 2:
        return recorder.coupled.get(kind, False)
    # A random half, which parts pairs in whatever order they lie.
    half = torch.randperm(rows, generator=torch.Generator().manual_seed(0)) < rows // 2
    half = half.to(clean.losses.device)
    found = False

    def look(place: str, call: int, signal: Tensor) -> None:
        nonlocal found
        if not found and len(signal) == rows:
            others = signal[~half]
            # Not nan, which 0 times infinity gives as well.
            found = bool(((others != 0) & others.isfinite()).any())

    clean.true_signals(places, look, half.to(clean.losses.dtype).view(rows, *[1] * (clean.losses.dim() - 1)))
    recorder.coupled[kind] = found
    return found


def _kind(criterion: Criterion) -> object:
    """What tells a criterion from others, though a loop may make it anew for each batch."""
    while isinstance(criterion, partial):
        criterion = criterion.func
    return getattr(criterion, "__code__", type(criterion))
