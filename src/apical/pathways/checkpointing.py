"""How activation checkpointing shows itself in a forward pass.

Checkpointing throws activities away and computes a block of layers a second time when the backward pass comes by. Whatever
counts or records calls has to tell the second pass from the first. PyTorch's two kinds differ (torch.utils.checkpoint): without
reentrance, both passes build a graph, and the second runs inside a backward pass; with it, the first one builds none, inside the
forward of an autograd Function.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from threading import RLock, get_ident
from types import FrameType

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from apical.synapses.circuit import ONE_THREAD


def recomputing() -> bool:
    """Whether a backward pass is going on, so that a forward pass is one that checkpointing computes again."""
    return torch._C._current_graph_task_id() != -1


opening = RLock()
"""Held while a pass of a model is opened: of two threads that come at the same moment, one has to find the other's."""

contested: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models at which a thread was refused while another was inside: as it leaves it may be walking through the model's hooks."""


def refuse_second(module: nn.Module, thread: int) -> None:
    """Raise a RuntimeError if a module is called while `thread` is inside a forward pass of it; 0 stands for this thread.

    Asked only where a pass seems to be open already; an interrupt may have left it so, too.
    """
    if thread not in (0, get_ident()):
        if _calls(module, sys._current_frames().get(thread)):
            contested.add(module)
            raise RuntimeError(
                f"{type(module).__name__} was called with gradients while another thread is inside a forward pass of it that "
                f"learns; {ONE_THREAD}"
            )
    elif _calls(module, inspect.currentframe()) > 1:
        raise RuntimeError(
            f"{type(module).__name__} calls itself inside its own forward pass, so its output can't be told from that of a part; "
            "put what is repeated into a module of its own and call that, or attach a layer-wise rule without a phase ('fa')"
        )


def _calls(module: nn.Module, frame: FrameType | None) -> int:
    """How many calls of a module are going on, seen from the innermost frame of a thread."""
    calls = 0
    while frame is not None:
        calls += frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls


def graph_comes_later() -> bool:
    """Whether the forward of an autograd Function is going on, so that a reentrant checkpoint may compute this anew.

    Nothing in PyTorch tells; so the interpreter's frames are searched for the Function's context. That is slow, and asked only
    for calls that build no graph although their input requires a gradient.
    """
    frame = inspect.currentframe()
    while frame is not None:
        first = frame.f_code.co_varnames[:1]
        if frame.f_code.co_name == "forward" and first and isinstance(frame.f_locals.get(first[0]), FunctionCtx):
            return True
        frame = frame.f_back
    return False
