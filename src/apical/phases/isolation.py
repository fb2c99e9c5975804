"""Passes that leave no trace: whatever a pass may change in a model is put back.

Dry runs, noisy passes, measurements and audits call a user's model beside his own loop; nothing of that may be seen afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from apical.synapses.synapse import Synapse

if TYPE_CHECKING:
    from apical.learner import Learner


def cuda_devices(model: nn.Module) -> list[int]:
    """Indices of the GPUs on which parameters of the model lie."""
    return sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})


class RandomState:
    """PyTorch's global random state, on the CPU and on some GPUs."""

    def __init__(self, devices: Iterable[int]) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def restore(self) -> None:
        """Let random numbers go on as from the moment when this was made."""
        torch.set_rng_state(self.cpu)
        for device, state in self.cuda:
            torch.cuda.set_rng_state(state, device)


class Snapshot:
    """What a pass may change in a model, as it is now; `restore` puts it back, as often as it is called."""

    def __init__(
        self, model: nn.Module, *, modes: bool = False, random: bool = False, buffers: Iterable[Tensor] = ()
    ) -> None:
        self._modes = [(module, module.training) for module in model.modules()] if modes else []
        self._random = RandomState(cuda_devices(model)) if random else None
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def restore(self) -> None:
        """Put everything back."""
        for module, mode in self._modes:
            module.training = mode
        if self._random is not None:
            self._random.restore()
        for buffer, value in self._buffers:
            # Through .data: graphs may hold on to these buffers without reading their values.
            buffer.data.copy_(value)


@contextmanager
def preserved(
    model: nn.Module,
    *,
    modes: bool = False,
    random: bool = False,
    gradients: bool = False,
    buffers: Iterable[Tensor] = (),
) -> Iterator[Snapshot]:
    """While open, passes through the model leave no trace; the snapshot given out can put all back in between.

    They are not compiled, whatever ``model.compile()`` was called on, because compiled code tells nothing of what goes through.

    Args:
        model: any module. modes: whether each module was in training mode. random: PyTorch's global random state.
        gradients: `.grad` of all parameters, which is None while this is open. buffers: tensors whose values are put back.
    """
    grads = [(p, p.grad) for p in model.parameters()] if gradients else []
    snapshot = Snapshot(model, modes=modes, random=random, buffers=buffers)
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with _eager(model):
            yield snapshot
    finally:
        snapshot.restore()
        for parameter, grad in grads:
            parameter.grad = grad


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


@contextmanager
def unchanged(learner: Learner) -> Iterator[None]:
    """While open, passes change no buffers of the learner's model besides feedback, and none is recorded."""
    with learner.phases.unheard(), preserved(learner.model, buffers=own_buffers(learner)):
        yield


def own_buffers(learner: Learner) -> list[Tensor]:
    """The model's own buffers, without feedback."""
    fed = {id(block) for block in learner.blocks.values()}
    return [
        buffer
        for module in learner.model.modules()
        if not isinstance(module, Synapse)
        for name, buffer in module._buffers.items()
        if buffer is not None and not (name in ("feedback", "feedback_mask") and id(module) in fed)
    ]


@contextmanager
def learning(model: nn.Module, wanted: bool | None) -> Iterator[list[nn.Parameter]]:
    """While open, all parameters, or none, require a gradient; with None, those that do. Gives those that do."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    for parameter, own in zip(parameters, before, strict=True):
        parameter.requires_grad_(own if wanted is None else wanted)
    try:
        yield [p for p in parameters if p.requires_grad]
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)
