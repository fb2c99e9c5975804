"""CUDA graphs as a CPU can have them: every operation that reaches the device is written down, and done again.

As a graph, it keeps the tensors of the operations and nothing of Python. Where one would wait for the device, a number is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees
from torch.utils._python_dispatch import TorchDispatchMode

from apical.cuda_graphs.cuda import Graphs

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default}
ON_THE_CPU_ALONE = {"refuse_infinite", "seeds"}
"""Functions of apical that look at numbers only where there is no GPU, or at those of the CPU's generators."""


def caller() -> str | None:
    """The line of Python that asks for a number; None where it does so on a CPU only."""
    frame = sys._getframe(2)
    while "torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    names = {frame.f_code.co_name, frame.f_back.f_code.co_name}  # A list that is made has a frame of its own.
    return None if names & ON_THE_CPU_ALONE else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS and (place := caller()):
            self.reads.append(place)
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS and caller():
            raise RuntimeError("operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        if func not in READS:
            self.done.append((func, args, kwargs or {}, result))
        return result

    def again(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, before in self.done:
                given = {memory(one) for one in trees.tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
                result = func(*args, **kwargs)
                for old, new in zip(trees.tree_leaves(before), trees.tree_leaves(result), strict=True):
                    if isinstance(old, Tensor) and memory(old) not in given:
                        old.copy_(new)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Emulated(Graphs):
    """Counts what it was asked for."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def aside(self, run: Callable[[], Any]) -> Any:
        return run()

    def watched(self, run: Callable[[], Any]) -> tuple[Any, list[str]]:
        with Watch() as watch:
            result = run()
        return result, watch.reads

    def record(self, run: Callable[[], Any], generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], Any]:
        with Tape() as tape:
            result = run()
        self.recorded += 1
        first = [True]

        def replay() -> None:
            self.replayed += 1
            if not first:  # Other than a GPU's, the recording has computed already.
                tape.again()
            first.clear()

        return replay, result

    def random_state(self) -> Tensor:
        return torch.zeros(())
