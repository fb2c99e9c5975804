"""A user's own network, by module:function or path/to/file.py:function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from apical.checks import nearest
from apical.phases.isolation import preserved


def own(spec: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of a user's function, named as module:function or path/to/file.py:function."""
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError(f"malformed network {spec!r}; write module:function or path/to/file.py:function")
    file = Path(where).expanduser().resolve() if where.endswith(".py") else None
    with _importable(Path.cwd(), *([file.parent] if file else [])):
        module = _load_file(spec, file) if file else _load_module(spec, where)
        function = _function(spec, module, name)
        keywords = _keywords(spec, function, {"shape": shape, "classes": classes})
        try:
            model = function(**keywords)
        except Exception as error:
            raise ValueError(f"network {spec!r}: {name}() failed with {told(error)}") from error
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"network {spec!r}: {name}() returned {type(model).__name__}, not an nn.Module; return the network itself"
            )
        check(spec, model, shape, classes)
    return model


@contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Look for modules in these folders first, the last one before the others."""
    entries = [str(folder) for folder in folders]
    for entry in entries:
        sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for entry in entries:
            if entry in sys.path:
                sys.path.remove(entry)


def _load_module(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"network {spec!r}: importing {name} failed with {told(error)}") from error
        raise ValueError(
            f"network {spec!r}: no module named {error.name!r}, neither installed nor in {Path.cwd()}; "
            "go to the module's folder, or write path/to/file.py:function"
        ) from error
    except Exception as error:
        raise ValueError(f"network {spec!r}: importing {name} failed with {told(error)}") from error


def _load_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"network {spec!r}: no file {path}; a relative path starts at {Path.cwd()}")
    name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    # Before it runs, since dataclasses and pickle look a module up by its name.
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"network {spec!r}: importing {path} failed with {told(error)}") from error
    return module


def _function(spec: str, module: ModuleType, name: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        raise ValueError(
            f"network {spec!r}: {name} is a network already, and every run needs a new one; name a function that makes it"
        )
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = "no function" if found is None else f"no function but a {type(found).__name__}"
        raise ValueError(
            f"network {spec!r}: {name!r} is {what} in {module.__file__}; "
            + (nearest(name, functions) if functions else "there is none in it")
        )
    return found


def _keywords(spec: str, function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those of `offered` that `function` has parameters for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {k: p for k, p in parameters.items() if p.kind not in (*variadic, inspect.Parameter.POSITIONAL_ONLY)}
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in variadic
        and not (key in offered and key in named)
    ]
    if missing:
        raise ValueError(
            f"network {spec!r}: the function needs {', '.join(missing)}, but it is given nothing except classes= and shape= "
            "where it takes them; give the others defaults, or name a function without them"
        )
    return {key: value for key, value in offered.items() if key in named}


def told(error: BaseException) -> str:
    """An error in somebody's code: what and where."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next(
        (f for f in reversed(frames) if not f.filename.startswith(("<", str(Path(torch.__file__).parent)))), None
    )
    where = f" ({last.filename}, line {last.lineno})" if last is not None and last.filename != __file__ else ""
    return f"{type(error).__name__}: {error}{where}"


def zeros(n: int, shape: tuple[int, ...], weights: torch.Tensor) -> torch.Tensor:
    """`n` samples of zeros as a network takes them: images in its weights' numbers, or a text's windows [n, T] of bytes.

    Args:
        shape: (C, H, W), or (T,). weights: any of the network's.

    >>> zeros(2, (5,), torch.zeros(1)).dtype, zeros(2, (1, 8, 8), torch.zeros(1)).shape
    (torch.int64, torch.Size([2, 1, 8, 8]))
    """
    return torch.zeros(n, *shape, dtype=torch.int64 if len(shape) == 1 else weights.dtype, device=weights.device)


def check(spec: str, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Raise a ValueError if a network does not fit the data, seen in one dry run before anything starts."""
    weights = next(model.parameters(), None)
    if weights is None:
        raise ValueError(f"network {spec!r} has no weights, so there is nothing to learn; give one that has")
    x = zeros(2, shape, weights)
    text = len(shape) == 1
    try:
        with torch.no_grad(), preserved(model):
            output = model.eval()(x)
    except Exception as error:
        raise ValueError(
            f"network {spec!r} does not take the data's {'windows of bytes' if text else 'images'}, "
            f"{' x '.join(map(str, shape))}: {told(error)}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"network {spec!r} returns a {type(output).__name__}, not a tensor; let it return the classes' values alone, "
            f"[images, {classes}]"
        )
    if text and output.shape != (2, *shape, classes):
        raise ValueError(
            f"network {spec!r} gives {list(output.shape[1:])} values per window of {shape[0]} bytes; a text's network gives "
            f"{[*shape, classes]}, {classes} for every byte"
        )
    if not text and output.shape != (2, classes):
        raise ValueError(
            f"network {spec!r} gives {list(output.shape[1:])} values per image, but the data has {classes} classes"
        )
