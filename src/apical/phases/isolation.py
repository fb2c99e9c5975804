"""Passes that leave no trace: buffers, random state, modes, gradients and recordings are put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from apical.learner import Learner


@contextmanager
def unchanged(learner: Learner) -> Iterator[None]:
    """Statistics and other buffers of the model are put back afterwards; nothing that happens inside is recorded."""
    recorder = learner._recorder
    buffers = learner._buffers()
    kept = [buffer.clone() for buffer in buffers]
    before = None if recorder is None else (recorder.paused, recorder.newest)
    if recorder is not None:
        recorder.paused = True
    try:
        yield
    finally:
        if recorder is not None and before is not None:
            recorder.paused, recorder.newest = before
        for buffer, value in zip(buffers, kept, strict=True):
            # Through .data: graphs of the passes inside may hold on to these buffers without reading their values.
            buffer.data.copy_(value)


@contextmanager
def learning(learner: Learner, wanted: bool | None) -> Iterator[list[nn.Parameter]]:
    """While open, all parameters, or none, require a gradient; with None, those that do. Gives those that do."""
    parameters = [p for p in learner.model.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    for parameter, own in zip(parameters, before, strict=True):
        parameter.requires_grad_(own if wanted is None else wanted)
    try:
        yield [p for p in parameters if p.requires_grad]
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)
