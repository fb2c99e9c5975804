"""CUDA graphs as PyTorch has them: the only part of a capture that needs a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from apical.nested import tensors

WAITS = "synchronizing CUDA operation"
"""What PyTorch's warnings say of an operation for which the CPU waits (`torch.cuda.set_sync_debug_mode`)."""


class Graphs(Protocol):
    """What makes graphs of what a device does."""

    def aside(self, run: Callable[[], Any]) -> Any:
        """What `run` gives, run on the stream that captures."""
        ...

    def watched(self, run: Callable[[], Any]) -> tuple[Any, list[str]]:
        """As `aside`, with the places in the code at which the CPU waited for the device."""
        ...

    def record(self, run: Callable[[], Any], generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], Any]:
        """A function that does what the device would have done in `run`, and what `run` gave, to be filled by that function.

        generators: from which `run` draws besides the device's own.
        """
        ...

    def random_state(self) -> Tensor:
        """The state of the device's own generator."""
        ...


class CudaGraphs(Graphs):
    """Graphs on one GPU, by `torch.cuda.CUDAGraph`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def aside(self, run: Callable[[], Any]) -> Any:
        """What `run` gives, run on the stream that captures: what libraries and autograd keep for a stream is there then."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = run()
        current.wait_stream(self.stream)
        for tensor in tensors(result):
            if tensor.is_cuda:
                tensor.record_stream(current)
        return result

    def watched(self, run: Callable[[], Any]) -> tuple[Any, list[str]]:
        """As `aside`, with the places at which the CPU waited; other warnings go on to whom they are for."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")  # Which warns of itself, too.
            told = len(caught)
            try:
                result = self.aside(run)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = []
        for one in caught[told:]:
            if WAITS in str(one.message):
                waits.append(f"{Path(one.filename).name}:{one.lineno}")
            else:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno, source=one.source)
        return result, waits

    def record(self, run: Callable[[], Any], generators: Sequence[torch.Generator]) -> tuple[Callable[[], None], Any]:
        """Capture `run`; nothing is computed yet.

        Raises:
            Exception: what `run` or CUDA raised; the stream is then as before.
        """
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        current, result, first = torch.cuda.current_stream(self.device), None, None
        try:
            with self._recording(graph):
                try:
                    result = run()
                except Exception as error:
                    first = error
                    raise
        except Exception as last:
            # Where a capture can't be ended, PyTorch leaves its stream the current one, and its generator captured until the end
            # of another capture.
            torch.cuda.set_stream(current)
            with suppress(RuntimeError), self._recording(torch.cuda.CUDAGraph()):
                torch.zeros((), device=self.device)
            torch.cuda.set_stream(current)
            raise (first or last) from None
        return graph.replay, result

    def _recording(self, graph: torch.cuda.CUDAGraph) -> AbstractContextManager[None]:
        # Other threads, as a loader's that pins memory, may go on meanwhile.
        return torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")

    def random_state(self) -> Tensor:
        """The state of the GPU's default generator."""
        return torch.cuda.get_rng_state(self.device)


def graphs_for(device: torch.device) -> Graphs | None:
    """What makes graphs of what `device` does; None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None
