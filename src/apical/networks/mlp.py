"""Fully connected networks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from apical.checks import nearest
from apical.networks.layers import SaturatedLinearity

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
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
    "saturated-linearity": SaturatedLinearity,
    "saturated-linearity-half": partial(SaturatedLinearity, 0.5),
}
"""Activation functions by name, for a network given by sizes."""


def parse_sizes(text: str) -> list[int]:
    """Layer sizes written with dashes, from input to output.

    Raises:
        ValueError: if `text` is no such list of at least two positive numbers.

    >>> parse_sizes("784-800-800-10")
    [784, 800, 800, 10]
    """
    if not re.fullmatch(r"\d+(-\d+)+", text) or 0 in (sizes := [int(part) for part in text.split("-")]):
        raise ValueError(
            f"network {text!r} is no size string; write positive sizes from input to output, e.g. 784-800-800-10"
        )
    return sizes


def mlp(sizes: Sequence[int], activation: str = "tanh", *, bias: bool = True) -> nn.Sequential:
    """A fully connected network with a linear output: x [N, *], sizes[0] values per sample -> [N, sizes[-1]].

    Args:
        sizes: values per layer, from input to output. activation: a name in `ACTIVATIONS`, between the layers.
        bias: whether layers have biases.

    Raises:
        ValueError: for an unknown activation (the nearest ones are offered).

    >>> mlp([784, 20, 10], "relu")
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=784, out_features=20, bias=True)
      (2): ReLU()
      (3): Linear(in_features=20, out_features=10, bias=True)
    )
    """
    key = activation.lower().replace("_", "-")
    if key not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; {nearest(key, ACTIVATIONS, str)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after, bias), ACTIVATIONS[key]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias))


def lansdell2020_mlp(inputs: int = 784, classes: int = 10, hidden: tuple[int, int] = (50, 20)) -> nn.Sequential:
    """The small network of lansdell2020 figs 2 and 4: x [N, *] -> [N, classes], two hidden layers, sigmoid.

    Released code: weights and biases are normal with sd sqrt(2 / fan in), the output is linear.

    >>> [layer.out_features for layer in lansdell2020_mlp() if isinstance(layer, nn.Linear)]
    [50, 20, 10]
    """
    model = mlp([inputs, *hidden, classes], "sigmoid")
    for layer in model:
        if isinstance(layer, nn.Linear):
            for parameter in (layer.weight, layer.bias):
                nn.init.normal_(parameter, 0.0, (2 / layer.in_features) ** 0.5)
    return model
