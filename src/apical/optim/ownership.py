"""Whose gradient it is: what tells that a backward pass is not the one that `LocalSGD` may move weights in.

In every such case the synapses' gradients go the ordinary way: to whoever asks for them, or to ``.grad``, and `step()` moves by
them as `torch.optim.SGD` would. What can be told of a forward pass is settled in it, the rest once at a backward pass's first
synapse: a small layer takes no longer than a look at each.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Container
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from apical.distributed import world

if TYPE_CHECKING:
    from apical.optim.site import Plan
    from apical.optim.updates import Updates
    from apical.synapses.synapse import Synapse


class Pass:
    """A forward pass, which its synapses' nodes share until a backward pass comes by.

    Attributes:
        beyond: whether a signal leaves it to what the optimizer doesn't move: a generator in front, an image under attack.
    """

    __slots__ = ("_moves", "_task", "beyond", "updates")

    def __init__(self, updates: Updates) -> None:
        self.updates, self._task = updates, -1
        self.beyond = self._moves = False

    def owner(self, node: Any) -> Updates | None:
        """Who takes updates in the backward pass that has come to a synapse's `node`; None if gradients are ordinary.

        Raises:
            RuntimeError: if the synapse has moved already since the last step.
        """
        updates = self.updates
        if not self._moved():
            return None
        if not updates.meant:
            # Not under torch.autograd.grad, nor under backward(inputs=...) of something else.
            try:
                for accumulator, _ in node.next_functions[1:]:
                    if accumulator is not None and not torch._C._will_engine_execute_node(accumulator):
                        return None
            except RuntimeError:  # PyTorch's answer for what torch.autograd.grad was asked for.
                return None
        if updates.sites[node.synapse].done:
            refuse_second(node.synapse.label)
        return updates

    def claim(self, synapse: Synapse, asked: bool) -> bool | Plan:
        """`owner`, for a node in C++: False if gradients are ordinary; else how C++ is to move the synapse, or True if it can't.

        asked: whether gradients are asked for of all that the synapse learns.
        """
        updates = self.updates
        if not self._moved() or not (asked or updates.meant):
            return False
        site = updates.sites[synapse]
        if site.done:
            refuse_second(synapse.label)
        return (updates.plan(site) if asked else None) or True

    def _moved(self) -> bool:
        """Whether weights move in the backward pass that is going on."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._moves = task, False
            self._moves = self.updates.begin(self.beyond)
        return self._moves


_hooks, _later_hooks, _gradient = map(attrgetter, ("_backward_hooks", "_post_accumulate_grad_hooks", "grad"))


def claimed(parameters: list[nn.Parameter]) -> bool:
    """Whether somebody else has a say in gradients: by a hook, or by one that lies there, to which the next is added."""
    return (
        any(map(_hooks, parameters))
        or any(map(_later_hooks, parameters))
        or list(map(_gradient, parameters)).count(None) < len(parameters)
    )


def scaled() -> bool:
    """Whether there is a GradScaler in use, so that losses are scaled: PyTorch keeps no list, so memory is gone through.

    That takes a tenth of a second where memory is full, and is left out while as many hold the classes as when there was none.
    """
    kinds: list[type] = [torch.amp.GradScaler]
    for kind in kinds:
        kinds += kind.__subclasses__()
    holders = list(map(sys.getrefcount, kinds))
    if holders == _holders_without:
        return False
    found = gc.get_referrers(*kinds)  # What holds a class: its objects, and a few others.
    scalers = [one for one in found if issubclass(type(one), torch.amp.GradScaler)]
    if not scalers:
        _holders_without[:] = holders
    return any(one.is_enabled() for one in scalers)


_holders_without: list[int] = []
"""How many held each class of scalers when there was no scaler."""


def made_within(x: Tensor, synapses: Container[Any], parameters: Container[int]) -> bool:
    """Whether the signal at `x`, an input that requires a gradient, ends in some of the synapses, or of the parameters, by id."""
    node = x.grad_fn
    if node is None:
        return id(x) in parameters
    edges = node.next_functions
    if len(edges) == 1 and getattr(edges[0][0], "synapse", None) in synapses:  # Mostly it is the one before.
        return True
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if getattr(node, "synapse", None) in synapses:
            continue  # Its own input was looked at when it was called.
        edges = node.next_functions
        if not edges and id(getattr(node, "variable", None)) not in parameters:
            return False
        for before, _ in edges:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return True


def refuse_processes() -> None:
    """Raise a RuntimeError under torch.distributed with several processes."""
    if world() > 1:
        raise RuntimeError(
            "LocalSGD applies updates before they could be averaged over processes; use torch.optim.SGD under "
            "DistributedDataParallel"
        )


def refuse_second(label: str) -> NoReturn:
    """Raise the RuntimeError for a synapse that has moved already since the last step."""
    raise RuntimeError(
        f"'{label}' got a second backward pass before step(), but LocalSGD has applied the first one's update "
        "already; call step() after each, or accumulate gradients with torch.optim.SGD; for gradients of inputs alone, "
        "use torch.autograd.grad"
    )


def refuse_infinite(delta: Tensor, bias: Tensor | None, label: str) -> None:
    """Raise a RuntimeError if the error at a synapse is not finite. On a GPU it is not looked at: that would wait for it.

    Args:
        bias: the error's sum over the batch, where it is made already: to read it takes less time than another sum.
    """
    if not delta.is_cpu:
        return
    total = delta.sum().item() if bias is None or bias.dim() > 1 or bias.numel() > 64 else sum(bias.tolist())
    if not math.isfinite(total) and not bool(delta.isfinite().all()):
        raise RuntimeError(
            f"the loss has no finite gradient at '{label}', and LocalSGD would move the weights by it before anybody could look "
            "at it; nothing has moved: leave the batch out, or lower the learning rate"
        )
