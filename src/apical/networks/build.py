"""A network from its description: sizes, a name, or the user's own function."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from apical.networks.cnn import lansdell2020_cnn
from apical.networks.mlp import mlp, parse_sizes
from apical.networks.resnet import resnet20

NETWORKS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "lansdell2020-cnn": lambda shape, classes: lansdell2020_cnn(classes),
    "resnet20": lambda shape, classes: resnet20(classes, shape[0]),
}


def build(spec: str, *, shape: tuple[int, int, int], classes: int, activation: str = "tanh") -> nn.Module:
    """The network that `spec` describes.

    Args:
        spec: sizes such as "784-800-800-10"; a name in `NETWORKS`; or "module:function" (or "path/to/file.py:function")
            of a function that returns a network, called with `shape` and `classes` if it takes arguments of these names.
        shape: (C, H, W) of the images. classes: values of the output.
        activation: between the layers of a network given by sizes.

    Raises:
        ValueError: if there is no such network, or it does not fit the data.
    """
    features = shape[0] * shape[1] * shape[2]
    if re.match(r"\s*[\d-]+\s*$", spec):
        sizes = parse_sizes(spec.strip())
        if (sizes[0], sizes[-1]) != (features, classes):
            right = "-".join(map(str, (features, *sizes[1:-1], classes)))
            raise ValueError(
                f"network {spec!r} takes {sizes[0]} values and gives {sizes[-1]}, but the data has {features} values per image "
                f"({' x '.join(map(str, shape))}) and {classes} classes; write {right}"
            )
        return mlp(sizes, activation)
    if ":" in spec:
        model = _own(spec, shape, classes)
    elif spec in NETWORKS:
        model = NETWORKS[spec](shape, classes)
    else:
        near = difflib.get_close_matches(spec, NETWORKS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the named ones are {', '.join(NETWORKS)}"
        raise ValueError(f"unknown network {spec!r}; {hint} Else give sizes (784-800-800-10) or module:function")
    _check(spec, model, shape, classes)
    return model


def _own(spec: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    place, _, name = spec.rpartition(":")
    module = _module(place)
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(f"network {spec!r}: {place} has no function {name!r}; it has {', '.join(there) or 'none'}")
    offered: dict[str, Any] = {"shape": shape, "classes": classes}
    taken = {key: value for key, value in offered.items() if key in inspect.signature(function).parameters}
    model = function(**taken)
    if not isinstance(model, nn.Module):
        raise ValueError(f"network {spec!r}: the function returned a {type(model).__name__}, not an nn.Module")
    return model


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).expanduser()
        if not path.is_file():
            raise ValueError(f"network file {place} does not exist")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    if os.getcwd() not in sys.path:  # noqa: PTH109
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and not (place == error.name or place.startswith(error.name + ".")):
            raise
        raise ValueError(
            f"network module {place!r} can't be found; name a module that can be imported from here, or a file: "
            "path/to/file.py:function"
        ) from error


def _check(spec: str, model: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    """One dry run, so that a network that doesn't fit the data is refused before anything starts."""
    weights = next(model.parameters(), None)
    modes = [(module, module.training) for module in model.modules()]
    x = (
        torch.zeros(2, *shape)
        if weights is None
        else torch.zeros(2, *shape, dtype=weights.dtype, device=weights.device)
    )
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model.eval()(x)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"network {spec!r} does not take the data's images, {' x '.join(map(str, shape))}: {error}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if isinstance(output, torch.Tensor) and output.shape != (2, classes):
        raise ValueError(
            f"network {spec!r} gives {list(output.shape[1:])} values per image, but the data has {classes} classes"
        )
