"""What a forward pass does with parameters in which no rule has a part: those of no synapse, and a synapse's outside its call.

A parameter that is added, looked up, concatenated or multiplied elementwise learns by the exact local gradient of the signal
that reaches it. One that an activity meets in a matrix product or a convolution is a weight, and autograd would carry the signal
back through its transpose.
"""

from __future__ import annotations

import linecache
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from apical.synapses.ties import LOOKUPS

PRODUCT = re.compile(r"(mm|mv|dot|matmul|linear|conv\w*|attention\w*|cdist\w*|rnn\w*|lstm\w*|gru\w*)$")
"""Names of operations that are, or are made of, matrix products."""
ADDING = re.compile(r"^b?add")
"""Names of those whose first operand is added to the product."""
SCALING = frozenset({"mul", "div", "mul_", "div_"})
LIBRARIES = tuple(str(Path(module.__file__ or "").parent) for module in (torch, sys.modules["apical"]))


@dataclass(frozen=True)
class Use:
    """An operation in which an activity met a parameter."""

    operation: str
    place: str
    """Line of the code that calls it: file, number, text."""


@dataclass
class Uses:
    """What one forward pass did with parameters outside of the calls of synapses.

    Attributes:
        products: id of a parameter -> the first product in which an activity met it. multiplied: where one was multiplied
            with it elementwise. met: where one was met at all, but in the call of an embedding that has it.
    """

    products: dict[int, Use] = field(default_factory=dict)
    multiplied: dict[int, Use] = field(default_factory=dict)
    met: dict[int, Use] = field(default_factory=dict)


@contextmanager
def watching(model: nn.Module, synapses: Iterable[str]) -> Iterator[Uses]:
    """While open, forward passes of a plain model fill in the `Uses` that are given.

    Args:
        model: not attached. synapses: names of the layers that are to become synapses.
    """
    uses = Uses()
    mode = _Follow(model, uses)
    layers = [model.get_submodule(name) for name in synapses]
    handles = []
    try:
        for module in model.modules():
            if isinstance(module, LOOKUPS):
                handles.append(module.register_forward_pre_hook(mode.look_up))
                handles.append(module.register_forward_hook(mode.looked_up))
        for layer in layers:
            # Around the layer's own computation alone: hooks are a user's code.
            layer.forward = partial(mode.call, layer, layer.forward)  # type: ignore[method-assign]
        with mode:
            yield uses
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            vars(layer).pop("forward", None)


class _Follow(TorchDispatchMode):
    """Follows parameters through views, casts and operations among themselves to those in which an activity meets them.

    Of every tensor that is made of parameters and constants alone, the storage is known, with what it is made of. All others
    are activities.
    """

    def __init__(self, model: nn.Module, uses: Uses) -> None:
        super().__init__()
        self.uses = uses
        self._made_of: dict[int, list[tuple[int, int, frozenset[int]]]] = {}
        self._held: list[Any] = []
        """Storages that are known, which no other tensor may get meanwhile."""
        self._inside: list[frozenset[int]] = []
        """Parameters of the synapses that are being called."""
        self._looked_up: list[frozenset[int]] = []
        """Parameters of the embeddings that are being called."""
        for buffer in model.buffers():
            self._know(buffer, frozenset())
        for parameter in model.parameters():
            self._know(parameter, frozenset({id(parameter)}))

    def call(self, layer: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """A synapse's own call: what it does with its parameters is the rule's, and what it gives is an activity."""
        self._inside.append(frozenset(map(id, layer.parameters())))
        try:
            result = forward(*args, **kwargs)
        finally:
            self._inside.pop()
        for tensor in _tensors(result):
            self._forget(tensor)
        return result

    def look_up(self, module: nn.Module, args: Any) -> None:
        """Pre-hook of an embedding."""
        self._looked_up.append(frozenset(map(id, module._parameters.values())))

    def looked_up(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hook of an embedding."""
        self._looked_up.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [*args, *(kwargs or {}).values()]
        known = [self._origin(tensor) for tensor in _tensors(inputs)]
        parameters = frozenset().union(*(origin for origin in known if origin is not None))
        if None not in known:
            for tensor in _tensors(result):
                self._know(tensor, parameters)
            return result
        for argument, given in zip(func._schema.arguments, inputs, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in _tensors(given):
                    self._forget(tensor)
        if torch.is_grad_enabled():
            own = self._inside[-1] if self._inside else frozenset()
            self._meet(func, inputs, parameters - own)
        return result

    def _meet(self, func: Any, inputs: list[Any], parameters: frozenset[int]) -> None:
        """An activity meets parameters."""
        if not parameters:
            return
        name, foreign = func.overloadpacket.__name__, func.namespace not in ("aten", "prims")
        self._note(self.uses.met, parameters.difference(*self._looked_up), name)
        found = None
        if PRODUCT.search(name) or foreign:
            factors = inputs[1:] if ADDING.match(name) else inputs[:2] if "conv" in name else inputs
            origins = [self._origin(tensor) for tensor in _tensors(factors)]
            if None in origins:
                parameters &= frozenset().union(*(origin for origin in origins if origin is not None))
                found = self.uses.products
        elif name in SCALING:
            found = self.uses.multiplied
        if found is not None:
            self._note(found, parameters, f"{func.namespace}.{name}" if foreign else name)

    @staticmethod
    def _note(found: dict[int, Use], parameters: frozenset[int], operation: str) -> None:
        if parameters - found.keys():
            use = Use(operation, _line())
            for parameter in parameters:
                found.setdefault(parameter, use)

    def _origin(self, tensor: Tensor) -> frozenset[int] | None:
        """What a tensor is made of; None if of an activity."""
        known = self._made_of.get(_storage(tensor))
        if not known:
            return None
        begin, end = _extent(tensor)
        return frozenset().union(*(origin for first, last, origin in known if first < end and begin < last))

    def _know(self, tensor: Tensor, origin: frozenset[int]) -> None:
        if tensor.layout != torch.strided:
            return
        place = _storage(tensor)
        if place not in self._made_of:
            self._held.append(tensor.untyped_storage())
            self._made_of[place] = []
        entry = (*_extent(tensor), origin)
        if entry not in self._made_of[place]:
            self._made_of[place].append(entry)

    def _forget(self, tensor: Tensor) -> None:
        if self._made_of.get(_storage(tensor)):
            self._made_of[_storage(tensor)] = []


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage that a tensor looks at, and that after the last one."""
    begin = int(tensor.storage_offset())
    last = sum((int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin * tensor.element_size(), (begin + last + 1 if tensor.numel() else begin) * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _line() -> str:
    """The innermost line that is neither PyTorch's nor apical's."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((*LIBRARIES, "<frozen")):
        frame = frame.f_back
    file, number = frame.f_code.co_filename, frame.f_lineno
    text = textwrap.shorten(linecache.getline(file, number).strip(), 90, placeholder=" ...")
    return f"{Path(file).name}:{number}" + (f" ({text})" if text else "")
