"""The workers that share a minibatch: in one process one after the other, or in as many processes as there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

import apical
from apical import distributed
from apical.data.batching import Share
from apical.plasticity.mirror import Mirror


class Workers:
    """The workers that pass parts of each minibatch through a model, of which every process is one or several.

    The running statistics of batch normalization come to be the mean of what each worker's would be after its part alone.

    Args:
        model: of one network, or of copies side by side. count: workers in all processes together.

    Attributes:
        share: which parts of a minibatch are this process's.

    Raises:
        ValueError: if the processes can't share them evenly.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        world, rank = distributed.world(), distributed.rank()
        if count % world:
            raise ValueError(f"{count} workers can't be shared evenly by {world} processes")
        self._here, self._model = count // world, model
        self.share: Share = (range(rank * self._here, (rank + 1) * self._here), count)
        buffers = dict(model.named_buffers()) if count > 1 else {}
        self._running = [one for name, one in buffers.items() if name.endswith(("running_mean", "running_var"))]
        self._counts = [one for name, one in buffers.items() if name.endswith("num_batches_tracked")]

    def parts(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The parts of this process's share x [copies, n, C, H, W], y [copies, n]; gradients are to be summed over them.

        When all have passed, gradients and statistics are those of all processes.
        """
        before = [one.clone() for one in (*self._running, *self._counts)]
        sums = [torch.zeros_like(one) for one in self._running]
        passed = torch.zeros((), dtype=torch.float64, device=y.device)
        for own, its in zip(x.tensor_split(self._here, 1), y.tensor_split(self._here, 1), strict=True):
            if not its.numel():
                continue
            for now, then in zip((*self._running, *self._counts), before, strict=True):
                now.copy_(then)
            yield own, its
            for total, now in zip(sums, self._running, strict=True):
                total += now
            passed += 1
        distributed.average([passed, *sums])
        for now, total in zip(self._running, sums, strict=True):
            now.copy_(total / passed.to(total.dtype))
        for now, then in zip(self._counts, before[len(self._running) :], strict=True):
            now.copy_(then + 1)
        self._gather()

    def _gather(self) -> None:
        """Sum gradients over all processes."""
        if (world := distributed.world()) == 1:
            return
        found = []
        for one in self._model.parameters():
            if one.requires_grad:
                # A process may have no row of an epoch's last, smaller minibatch.
                one.grad = torch.zeros_like(one) if one.grad is None else one.grad
                found.append(one.grad)
        distributed.average(found)
        for one in found:
            one *= world


def shared(rule: apical.Rule) -> apical.Rule:
    """A rule of which every process's mirrors take its share of the rows of noise."""
    mirror, world = rule.plasticity, distributed.world()
    if world == 1 or not isinstance(mirror, Mirror) or mirror.batch is None:
        return rule
    return replace(rule, plasticity=replace(mirror, batch=-(-mirror.batch // world)))
