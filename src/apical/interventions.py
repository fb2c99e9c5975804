"""What a phase does to a pass while it is made: activities changed on the way, no trace left behind, parameters held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from apical.arguments import Arguments, input_of, with_input

if TYPE_CHECKING:
    from apical.learner import Learner

Perturb = Callable[[str, int, Tensor], Tensor | None]
"""perturb(place, call, activity) -> what the pass goes on with instead, or None for no change."""


@contextmanager
def perturbing(learner: Learner, perturb: Perturb, places: list[str] | None = None) -> Iterator[None]:
    """While open, `perturb` sees the activity at every place a teaching signal enters: synapse inputs, outputs of blocks."""
    counts: dict[str, int] = {}

    def changed(place: str, activity: Tensor) -> Tensor | None:
        number = counts[place] = counts.get(place, -1) + 1
        return perturb(place, number, activity)

    def before(place: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
            found = changed(place, input_of(args, kwargs))
            return None if found is None else with_input(args, kwargs, found)

        return hook

    def after(place: str) -> Callable[..., Any]:
        return lambda module, args, output: changed(place, output)

    wanted = [site.name for site in learner._sites()] if places is None else places
    handles = [
        learner.synapses[p].register_forward_pre_hook(before(p), with_kwargs=True)
        for p in wanted
        if p not in learner.blocks
    ]
    handles += [learner.blocks[p].register_forward_hook(after(p)) for p in wanted if p in learner.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
