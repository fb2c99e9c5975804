"""Passing one batch through a model several times under equal conditions, and leaving no trace of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apical.learner import Criterion, Learner
from apical.outputs import pick
from apical.pathway import LayerWise
from apical.plasticity import Transport
from apical.probe import run
from apical.synapse import Synapse


@contextmanager
def replaying(learner: Learner) -> Iterator[Callable[[], None]]:
    """Hold everything a pass changes besides gradients; the value given out puts it all back at once, for the next pass.

    That is: PyTorch's and the learner's random state, running statistics, redrawn feedback, and `.grad` of all parameters.
    """
    model = learner.model
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    buffers = [b for m in model.modules() if not isinstance(m, Synapse) for b in m.buffers(recurse=False)]
    kept = [b.detach().clone() for b in buffers]
    redrawn = [(s, dict(s._buffers)) for s in learner.synapses.values() if s.plasticity.redraws]
    grads = [(p, p.grad) for p in model.parameters()]
    drawn = learner.generator.get_state()
    seeds = (torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices])

    def again() -> None:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for synapse, stored in redrawn:
            synapse._buffers.update(stored)
        learner.generator.set_state(drawn)
        torch.set_rng_state(seeds[0])
        for device, state in zip(devices, seeds[1], strict=True):
            torch.cuda.set_rng_state(state, device)

    for parameter, _ in grads:
        parameter.grad = None
    try:
        yield again
    finally:
        again()
        for parameter, grad in grads:
            parameter.grad = grad


@contextmanager
def backpropagating(learner: Learner) -> Iterator[None]:
    """While open, the model teaches its synapses by backpropagation through all its weights."""
    held = [
        (s, {k: vars(s)[k] for k in ("pathway", "plasticity", "sends_back") if k in vars(s)})
        for s in learner.synapses.values()
    ]
    muted = learner._wiring.muted
    learner._wiring.muted = True
    try:
        for synapse, _ in held:
            vars(synapse).update(pathway=LayerWise(), plasticity=Transport(), sends_back=True)
        yield
    finally:
        learner._wiring.muted = muted
        for synapse, own in held:
            vars(synapse).pop("sends_back", None)
            vars(synapse).update(own)


def losses_of(learner: Learner, inputs: Any, targets: Any, criterion: Criterion) -> Tensor:
    """Per-sample losses [N] of the model on a batch.

    Raises:
        ValueError: if the criterion does not give one loss per sample.
    """
    output = pick(run(learner.model, inputs), learner._wiring.output)
    losses = criterion(output, targets)
    if not isinstance(losses, Tensor) or losses.dim() == 0 or losses.shape != output.shape[:1]:
        shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"criterion has to return one loss per sample, shape [{len(output)}], but gave {shape}; "
            'for PyTorch\'s losses pass reduction="none" (and sum over outputs, where there are several)'
        )
    return losses


def owners_of_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module, for every module with parameters of its own; the root is called "(model)"."""
    return {
        name or "(model)": m for name, m in model.named_modules() if any(p is not None for p in m._parameters.values())
    }
