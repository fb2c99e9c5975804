"""Fully connected networks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "logistic": nn.Sigmoid,
    "identity": nn.Identity,
    "linear": nn.Identity,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky-relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
}


def parse_sizes(text: str) -> list[int]:
    """Layer sizes from "784-800-800-10".

    Raises:
        ValueError: if `text` is no such list of at least two positive numbers.
    """
    if not re.fullmatch(r"\d+(-\d+)+", text) or 0 in (sizes := [int(part) for part in text.split("-")]):
        raise ValueError(
            f"network {text!r} is no size string; write positive sizes from input to output, e.g. 784-800-800-10"
        )
    return sizes


def mlp(sizes: Sequence[int], activation: str = "tanh") -> nn.Sequential:
    """A fully connected network with biases: x [N, *] with sizes[0] values per sample -> [N, sizes[-1]], linear output.

    Raises:
        ValueError: for an unknown activation (the nearest ones are offered).
    """
    key = activation.lower().replace("_", "-")
    if key not in ACTIVATIONS:
        near = difflib.get_close_matches(key, ACTIVATIONS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"give one of {', '.join(ACTIVATIONS)}"
        raise ValueError(f"unknown activation {activation!r}; {hint}")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), ACTIVATIONS[key]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def lansdell2020_mlp(inputs: int = 784, classes: int = 10, hidden: tuple[int, int] = (50, 20)) -> nn.Sequential:
    """The small network of lansdell2020 figs 2 and 4: x [N, *] -> [N, classes], two hidden layers, sigmoid.

    Released code: weights and biases are normal with sd sqrt(2 / fan in), the output is linear.
    """
    model = mlp([inputs, *hidden, classes], "sigmoid")
    for layer in model:
        if isinstance(layer, nn.Linear):
            for parameter in (layer.weight, layer.bias):
                nn.init.normal_(parameter, 0.0, (2 / layer.in_features) ** 0.5)
    return model
