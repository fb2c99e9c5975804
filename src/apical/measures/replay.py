"""Passing one batch through a model several times under equal conditions, and leaving no trace of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apical.learner import Criterion, Learner
from apical.losses import check_losses
from apical.nested import pick, run
from apical.optim.updates import ordinary
from apical.phases.layout import as_one_network
from apical.synapses.synapse import Synapse

Again = Callable[[], None]
"""again(): puts all that a pass changes back to where it was, for the next one under equal conditions."""


@contextmanager
def replaying(learner: Learner, *, phases: bool = False) -> Iterator[Again]:
    """While open, passes may be made at will; afterwards everything is as before.

    Held are PyTorch's and the learner's random state, running statistics, redrawn feedback and `.grad` of all
    parameters. The function given out puts all but the gradients back at once, so that two passes can be compared.

    Args:
        learner: whose model passes.
        phases: whether passes inside are recorded for `Learner.adapt`, and feedback that it changes is put back as
            well.

    Raises:
        ValueError: if the learner holds several copies side by side.
    """
    model = learner.model
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    buffers = [b for m in model.modules() if not isinstance(m, Synapse) for b in m.buffers(recurse=False)]
    kept = [b.detach().clone() for b in buffers]
    redrawn = [(s, dict(s._buffers)) for s in learner.synapses.values() if s.plasticity.redraws]
    learned = [b for owner in _adapting(learner) if phases for b in owner._buffers.values() if b is not None]
    feedback = [b.clone() for b in learned]
    adapted, recorder = learner.adapted, learner._recorder
    grads = [(p, p.grad) for p in model.parameters()]
    drawn = learner.generator.get_state()
    seeds = (torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices])

    def again() -> None:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                if not torch.equal(buffer, value):
                    # Through .data: a graph of the loop's own may hold on to it.
                    buffer.data.copy_(value)
            for tensor, value in zip(learned, feedback, strict=True):
                tensor.copy_(value)
        learner.adapted = adapted
        for synapse, stored in redrawn:
            synapse._buffers.update(stored)
        learner.generator.set_state(drawn)
        torch.set_rng_state(seeds[0])
        for device, state in zip(devices, seeds[1], strict=True):
            torch.cuda.set_rng_state(state, device)

    for parameter, _ in grads:
        parameter.grad = None
    before = None if recorder is None else (recorder.paused, recorder.newest)
    if recorder is not None:
        recorder.paused = not phases
    try:
        with as_one_network(learner), ordinary(learner):
            yield again
    finally:
        again()
        if recorder is not None and before is not None:
            recorder.paused, recorder.newest = before
        for parameter, grad in grads:
            parameter.grad = grad


def _adapting(learner: Learner) -> list[nn.Module]:
    return [site.owner for site in learner._sites() if site.plasticity.adapts]


def losses_of(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> Tensor:
    """Per-sample losses [N] of the model on a batch.

    Raises:
        ValueError: if the criterion does not give one loss per sample.
    """
    output = pick(run(learner.model, inputs), learner._wiring.output)
    return check_losses(criterion(output, targets), output)


def owners_of_weights(learner: Learner) -> dict[str, nn.Module]:
    """Name -> module, for every module with parameters of its own besides feedback; the root is called "(model)"."""
    return {name or "(model)": m for name, m in learner.model.named_modules() if own_parameters(learner, m)}


def own_parameters(learner: Learner, module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of one module itself, without the feedback of a synapse or of a block named in ``at=``."""
    fed = isinstance(module, Synapse) or module in learner.blocks.values()
    return {name: p for name, p in module._parameters.items() if p is not None and not (fed and name == "feedback")}
