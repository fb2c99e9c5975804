"""All that a pass may change in a model besides its weights: what its modules hold as attributes and buffers."""

from __future__ import annotations

import pickle
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from functools import cache, partial
from operator import is_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from apical.phases.hooks import Hooks
from apical.synapses.storage import CURRENT, MASKS, names_kept
from apical.synapses.synapse import Synapse

_FEW = 1000
# Dictionaries that belong to nn.Module itself, hooks among them; and methods that apical puts on instances for a while.
_OWN = frozenset(vars(nn.Module())) - {"training"} | {"forward", "transmit", "infer"}
_OWN_OF_SYNAPSES = _OWN | Synapse.__annotations__.keys() | {CURRENT}
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device})
# Users' own objects are looked into, and plain containers.
_CLOSED = {*sys.stdlib_module_names, "torch", "numpy", "apical", "lightning", "pytorch_lightning"} - {
    "collections",
    "types",
}


class State:
    """What some owners hold, as it is now; `restore` puts it back, as often as it is called.

    Owners then have the same attributes, buffers, submodules and parameters again: the same objects, with the values they had
    (but for parameters), and no hooks of their own that are new. What they hold is followed; not so iterators, files, attributes
    of classes, elements of lists of more than a thousand, and what functions keep. What a plasticity keeps, and what makes a
    synapse one, is left alone.

    Args:
        modules: all of a model's.
        owners: those that are held in full, and what else is: tensors, containers, modules of Python that have a random state.
        watched: modules held but for values of tensors and arrays; `changed` tells of those of tensors.
    """

    def __init__(self, modules: Iterable[nn.Module], owners: Iterable[Any], watched: Iterable[nn.Module] = ()) -> None:
        self._modules = list(modules)
        self._places: list[tuple[Any, Held | _Names | _Source | Hooks]] = []
        self._weights: set[int] | None = None
        self._waiting: list[Any] = []
        # A registered module is an owner by itself, or not held at all.
        seen = set(map(id, self._modules))
        for self._lightly, group in ((False, owners), (True, watched)):
            for self._owner in group:
                self._visit(self._owner)
                while self._waiting:
                    value = self._waiting.pop()
                    if id(value) not in seen:
                        seen.add(id(value))
                        self._visit(value)

    def changed(self, among: Iterable[Any] | None = None) -> list[Any]:
        """The owners, of all or of some, of what is not as it was."""
        wanted = None if among is None else set(map(id, among))
        places = [pair for pair in self._places if wanted is None or id(pair[0]) in wanted]
        return list({id(owner): owner for owner, place in places if place.changed()}.values())

    def restore(self) -> None:
        """Put everything back."""
        for _, place in self._places:
            place.restore()

    def leaves(self) -> Iterator[Tensor]:
        """Tensors, no parameters, whose gradients a backward pass would add to."""
        tensors = (place.tensor for _, place in self._places if isinstance(place, Held))
        return (tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and not self._is_weights(value):
                self._tensor(value)
        elif isinstance(value, dict):
            self._names(value)
        elif isinstance(value, list | deque | set):
            self._source(partial(list, value), partial(_refill, value), _same)
            self._follow(list(value))
        elif isinstance(value, tuple | frozenset):
            self._follow(value)
        elif isinstance(value, torch.Generator | random.Random | ModuleType):
            self._random(value)
        elif kind.__module__.partition(".")[0] == "numpy":
            self._numpy(value)
        elif _open(kind):
            self._names(getattr(value, "__dict__", {}))
            if slots := _slots(kind):
                get = partial(_slotted, value, slots)
                self._source(get, partial(_refill_slots, value, slots), _identical)
                self._follow(get().values())

    def _follow(self, values: Collection[Any]) -> None:
        if len(values) <= _FEW:
            self._waiting += [value for value in values if type(value) not in _ATOMS]

    def _names(self, held: dict[Any, Any]) -> None:
        place = _Names(held)
        self._places.append((self._owner, place))
        self._follow(place.before.values())

    def _source(self, get: Callable[[], Any], put: Callable[[Any], Any], same: Callable[[Any, Any], bool]) -> None:
        self._places.append((self._owner, _Source(get, put, same)))

    def _random(self, value: Any) -> None:
        if hasattr(value, "state"):  # A bit generator of NumPy's.
            self._source(lambda: value.state, partial(setattr, value, "state"), _equal)
        for get, put in (("getstate", "setstate"), ("get_state", "set_state")):
            if hasattr(value, get):
                self._source(getattr(value, get), getattr(value, put), _equal)

    def _numpy(self, value: Any) -> None:
        if not hasattr(value, "flags"):
            self._random(getattr(value, "bit_generator", value))
        elif value.flags.writeable and not self._lightly:
            self._source(value.copy, partial(value.__setitem__, ...), _equal)

    def _module(self, module: nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            for _, buffer in module.named_buffers(recurse=False):
                self._tensor(buffer)
            return
        self._waiting += module._modules.values()
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            return
        attributes, buffers = self._names_of(module)
        self._waiting += [value for value in attributes.values() if type(value) not in _ATOMS]
        for buffer in buffers.values():
            if buffer is not None:
                self._tensor(buffer)

    def _names_of(self, module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
        own, kept, held = _OWN_OF_SYNAPSES if isinstance(module, Synapse) else _OWN, _kept(module), vars(module)
        places = [_Names(held, own), *(_Names(held[name], kept) for name in ("_buffers", "_modules", "_parameters"))]
        self._places += [(self._owner, place) for place in places]
        if not self._lightly:
            self._places.append((self._owner, Hooks(module)))
        return places[0].before, places[1].before

    def _tensor(self, tensor: Tensor) -> None:
        if _writable(tensor):
            self._places.append((self._owner, Held(tensor, values=not self._lightly)))

    def _is_weights(self, tensor: Tensor) -> bool:
        """Whether a tensor is some parameter's memory under another name."""
        if self._weights is None:
            own = [p for module in self._modules for p in module._parameters.values() if p is not None]
            self._weights = set(map(_memory, own)) - {0}
        return _memory(tensor) in self._weights


def held_buffers(module: nn.Module) -> list[Held]:
    """Those that a module itself has, but for feedback and masks."""
    buffers = module._buffers
    if not buffers:
        return []
    kept = _kept(module)
    return [Held(one) for name, one in buffers.items() if one is not None and name not in kept and _writable(one)]


def _kept(owner: nn.Module) -> tuple[str, ...]:
    names = names_kept(owner)
    return (*names, *MASKS) if names or isinstance(owner, Synapse) else ()


class Held:
    """A tensor with its memory and, if wanted, its values as they are now."""

    def __init__(self, tensor: Tensor, *, values: bool = True) -> None:
        self.tensor, self.version = tensor, tensor._version
        self._plain = type(tensor) in (Tensor, nn.Parameter) and _strided(tensor)
        # Through .data: graphs may hold on to it without reading its values.
        self.memory = tensor.data
        self.values = self.memory.clone() if values else None

    def changed(self) -> bool:
        """Whether it has other values or other memory."""
        if self.values is None or not self._plain:
            return self.tensor._version != self.version
        return self._moved() or not torch.equal(self.memory, self.values)

    def restore(self) -> None:
        """Put the values back, where and in the shape that they were."""
        if self.values is not None:
            self.memory.copy_(self.values)
        if self._moved():
            self.tensor.data = self.memory

    def _moved(self) -> bool:
        tensor, memory = self.tensor, self.memory
        return tensor.shape != memory.shape or (self._plain and tensor.data_ptr() != memory.data_ptr())


class _Names:
    """What a dict holds by name, but for the names that are left alone."""

    def __init__(self, held: dict[Any, Any], left: Container[Any] = ()) -> None:
        self.held, self.left, self._all = held, left, dict(held)

    @property
    def before(self) -> dict[Any, Any]:
        return self._own(self._all)

    def _own(self, named: dict[Any, Any]) -> dict[Any, Any]:
        return {name: value for name, value in named.items() if name not in self.left}

    def changed(self) -> bool:
        # Mostly nothing has, whatever is left alone.
        return not (_identical(self.held, self._all) or _identical(self._own(self.held), self.before))

    def restore(self) -> None:
        if self.changed():
            for name in self._own(self.held):
                del self.held[name]
            for name, value in self.before.items():
                self.held[name] = value


class _Source:
    """What is got and set as a whole."""

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], Any], same: Callable[[Any, Any], bool]) -> None:
        self.get, self.put, self.same, self.before = get, put, same, get()

    def changed(self) -> bool:
        return not self.same(self.get(), self.before)

    def restore(self) -> None:
        self.put(self.before)


def _equal(a: Any, b: Any) -> bool:
    return pickle.dumps(a) == pickle.dumps(b)


def _same(a: Collection[Any], b: Collection[Any]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


def _identical(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return _same(a.values(), b.values()) and all(map(is_, a, b))


def _refill(held: Any, before: list[Any]) -> None:
    if not _same(held, before):
        held.clear()
        (held.update if isinstance(held, set) else held.extend)(before)


def _slotted(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _refill_slots(value: Any, names: tuple[str, ...], before: dict[str, Any]) -> None:
    for name in _slotted(value, names).keys() - before.keys():
        object.__delattr__(value, name)
    for name, one in before.items():
        object.__setattr__(value, name, one)


@cache
def _open(kind: type) -> bool:
    return not issubclass(kind, type) and kind.__module__.partition(".")[0] not in _CLOSED


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """Names of attributes that objects of a class keep outside a dictionary."""
    found = [vars(one).get("__slots__", ()) for one in kind.__mro__]
    return tuple(n for one in found for n in ([one] if isinstance(one, str) else one) if not n.startswith("__"))


def _writable(tensor: Tensor) -> bool:
    if tensor.is_inference() or not _strided(tensor) or tensor.is_contiguous():
        return not tensor.is_inference()
    # Not where elements lie in one place, as after `expand`.
    return all(step or n < 2 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if _strided(tensor) and not tensor.is_meta else 0
