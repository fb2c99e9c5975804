"""A network from its description: sizes, a name, or the user's own function."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from apical.checks import nearest
from apical.networks import amit2019
from apical.networks.cnn import lansdell2020_cnn, nokland2016_conv
from apical.networks.mlp import lansdell2020_mlp, mlp, parse_sizes
from apical.networks.resnet import resnet18, resnet20, resnet32, resnet50, resnet56
from apical.networks.speedrun import speedrun
from apical.networks.transformer import gpt, vit_s16
from apical.networks.users import check, own

Made = Callable[[Any, int], nn.Module]


def _resnet(make: Callable[..., nn.Module], **options: str) -> Made:
    return lambda shape, classes: make(classes, shape[0], **options)


NETWORKS: dict[str, Made] = {
    "lansdell2020-mlp": lambda shape, classes: lansdell2020_mlp(math.prod(shape), classes),
    "lansdell2020-cnn": lambda shape, classes: lansdell2020_cnn(classes),
    "resnet20": _resnet(resnet20),
    "resnet20-norm-after": _resnet(resnet20, norm="after"),
    "resnet32": _resnet(resnet32),
    "resnet32-norm-after": _resnet(resnet32, norm="after"),
    "resnet56": _resnet(resnet56),
    "resnet56-norm-after": _resnet(resnet56, norm="after"),
    "resnet18": _resnet(resnet18),
    "resnet18-norm-after": _resnet(resnet18, norm="after"),
    "resnet18-cifar": _resnet(resnet18, stem="small"),
    "resnet18-cifar-norm-after": _resnet(resnet18, stem="small", norm="after"),
    "resnet50": _resnet(resnet50),
    "resnet50-norm-after": _resnet(resnet50, norm="after"),
    "vit-s16": lambda shape, classes: vit_s16(classes, shape[0], shape[1]),
    "speedrun": lambda shape, classes: speedrun(classes, shape[0]),
    "lansdell2020-cnn-code": lambda shape, classes: lansdell2020_cnn(classes, form="code"),
    "nokland2016-conv": lambda shape, classes: nokland2016_conv(classes, shape[0]),
    "amit2019-simpnet": amit2019.amit2019_simpnet,
    "amit2019-simpnet-untied": partial(amit2019.amit2019_simpnet, untied=True),
    "amit2019-deepnet": amit2019.amit2019_deepnet,
    "amit2019-deepnet-untied": partial(amit2019.amit2019_deepnet, untied=True),
    "amit2019-deepernet": amit2019.amit2019_deepernet,
    "amit2019-deepernet-untied": partial(amit2019.amit2019_deepernet, untied=True),
    "amit2019-deepnet-s": amit2019.amit2019_deepnet_s,
    "amit2019-deepnet-s-untied": partial(amit2019.amit2019_deepnet_s, untied=True),
}
"""Networks by name, each made for images of a shape (C, H, W) and a number of classes."""
OF_TEXT = "gpt-256x4"
"""The name of a network for text; its numbers, width and depth, may be others."""


def build(spec: str, *, shape: tuple[int, ...], classes: int, activation: str = "tanh") -> nn.Module:
    """The network that `spec` describes, in train mode, seen to take the data's images, or a text's windows.

    Args:
        spec: sizes such as "784-800-800-10"; a name in `NETWORKS`; for text "gpt-256x4", or with other numbers of units and
            blocks; or "module:function" (or "path/to/file.py:function") of a function that returns a network, called with
            `shape` and `classes` if it takes arguments of these names. Modules are looked for in the current folder too.
        shape: (C, H, W) of the images, or (T,) of a text's windows. classes: values of the output.
        activation: between the layers of a network given by sizes.

    Raises:
        ValueError: if there is no such network, it can't be made, or it does not fit the data.

    >>> import torch
    >>> build("64-20-10", shape=(1, 8, 8), classes=10)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    >>> build("resnet-20", shape=(3, 32, 32), classes=10)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: unknown network 'resnet-20'; did you mean resnet20 ...
    """
    features = math.prod(shape)
    spec = spec.strip()
    if ":" in spec:
        return own(spec, shape, classes)
    named = re.fullmatch(r"gpt-(\d+)x(\d+)", spec)
    if named is None and len(shape) == 1:
        raise ValueError(
            f"network {spec!r} is for images, and the data are a text in windows of {shape[0]} bytes; name {OF_TEXT}, or "
            "module:function of one that takes int64 [N, T] and gives [N, T, classes]"
        )
    if named is not None:
        if len(shape) != 1:
            raise ValueError(f"network {spec!r} is for text, and the data are images; give data='text' (--data text)")
        width, depth = map(int, named.groups())
        return gpt(width, depth, vocabulary=classes, context=shape[0])
    if re.match(r"[\d-]", spec):
        sizes = parse_sizes(spec)
        if (sizes[0], sizes[-1]) != (features, classes):
            right = "-".join(map(str, (features, *sizes[1:-1], classes)))
            raise ValueError(
                f"network {spec!r} takes {sizes[0]} values and gives {sizes[-1]}, but the data has {features} values per image "
                f"({' x '.join(map(str, shape))}) and {classes} classes; write {right}"
            )
        return mlp(sizes, activation)
    if spec not in NETWORKS:
        hint = nearest(spec, NETWORKS, str)
        raise ValueError(f"unknown network {spec!r}; {hint} (or give sizes, 784-800-800-10, or module:function)")
    model = NETWORKS[spec](shape, classes)
    check(spec, model, shape, classes)
    return model
