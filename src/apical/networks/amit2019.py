"""The networks of amit2019 (section 4), tied and untied, for images of any size.

All have no biases, no normalization and a linear output; f = saturated linearity follows every layer but the last, dropout is
the fraction dropped, convolutions have stride 1 and "same" padding of zeros, weights start Glorot-uniform. The paper has
f with slope 1 and centred max pooling; the released code slope 0.5 and windows that begin in the corner.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from apical.networks.layers import Form, SaturatedLinearity, ZeroPaddedMaxPool2d, check_form, glorot
from apical.synapses.locally_connected import LocallyConnected2d

Shape = tuple[int, int, int]
CIFAR: Shape = (3, 32, 32)


class Pair(nn.Module):
    """Two convolutions, each followed by f, and the sum of what the two give ("SUM"): [N, C, H, W] -> [N, maps, H, W].

    h = f(W1 x), y = h + f(W2 h). The error at y goes back into both.
    """

    def __init__(self, first: nn.Module, second: nn.Module, slope: float) -> None:
        super().__init__()
        self.first, self.first_f = first, SaturatedLinearity(slope)
        self.second, self.second_f = second, SaturatedLinearity(slope)

    @override
    def forward(self, x: Tensor) -> Tensor:
        h = self.first_f(self.first(x))
        return h + self.second_f(self.second(h))


class _Maker:
    """Layers one after the other, and the shape of what the last one gives."""

    def __init__(self, shape: Shape, untied: bool, form: Form) -> None:
        check_form(form)
        self.maps, self.sizes = shape[0], shape[1:]
        self.untied = untied
        self.slope = 1.0 if form == "paper" else 0.5
        self.place: Literal["centred", "corner"] = "centred" if form == "paper" else "corner"
        self.layers: list[nn.Module] = []

    def _convolution(self, maps: int, kernel: int, untied: bool) -> nn.Module:
        before, self.maps = self.maps, maps
        # Of an even kernel, an odd amount of zeros with its larger half behind; by a layer, as nn.Conv2d warns of it.
        less, more = (kernel - 1) // 2, kernel // 2
        sizes = self.sizes if less == more else (self.sizes[0] + kernel - 1, self.sizes[1] + kernel - 1)
        padding = less if less == more else 0
        made: nn.Module = (
            LocallyConnected2d(before, maps, kernel, sizes, padding=padding, bias=False)
            if untied
            else nn.Conv2d(before, maps, kernel, padding=padding, bias=False)
        )
        return made if less == more else nn.Sequential(nn.ZeroPad2d((less, more, less, more)), made)

    def conv(self, maps: int, kernel: int) -> None:
        self.layers += [self._convolution(maps, kernel, self.untied), SaturatedLinearity(self.slope)]

    def pair(self, maps: int, kernel: int, *, first: int | None = None, tied_first: bool = False) -> None:
        one = self._convolution(maps, first or kernel, self.untied and not tied_first)
        self.layers.append(Pair(one, self._convolution(maps, kernel, self.untied), self.slope))

    def pool(self, kernel: int, stride: int) -> None:
        self.layers.append(ZeroPaddedMaxPool2d(kernel, stride, self.place))
        self.sizes = (math.ceil(self.sizes[0] / stride), math.ceil(self.sizes[1] / stride))

    def drop(self, fraction: float) -> None:
        self.layers.append(nn.Dropout(fraction))

    def full(self, units: int) -> None:
        features = self.maps * math.prod(self.sizes)
        self.layers += [nn.Flatten(), nn.Linear(features, units, bias=False), SaturatedLinearity(self.slope)]
        self.units = units

    def ended(self, classes: int) -> nn.Sequential:
        net = nn.Sequential(*self.layers, nn.Linear(self.units, classes, bias=False))
        glorot(net)
        return net


def amit2019_simpnet(
    shape: Shape = CIFAR, classes: int = 10, *, untied: bool = False, form: Form = "paper"
) -> nn.Sequential:
    """simpnet: Conv32 5x5; Maxpool 3/2; Drop .8; Full 500; Drop .3; Output (amit2019 section 4): x [N, *shape] -> [N, classes].

    Args:
        shape: (C, H, W) of the images. classes: values of the output. untied: with a locally connected layer for the convolution.
        form: "paper" or "code" (see the module).

    >>> sum(p.numel() for p in amit2019_simpnet().parameters())
    4103400
    """
    net = _Maker(shape, untied, form)
    net.conv(32, 5)
    net.pool(3, 2)
    net.drop(0.8)
    net.full(500)
    net.drop(0.3)
    return net.ended(classes)


def amit2019_deepnet(
    shape: Shape = CIFAR, classes: int = 10, *, untied: bool = False, form: Form = "paper"
) -> nn.Sequential:
    """deepnet, a reading: its layers are lost in the text (amit2019 section 4): x [N, *shape] -> [N, classes].

    Conv32 5x5; Maxpool 3/2; Conv32 3x3; Conv32 3x3; Maxpool 3/2; Drop .5; Conv64 3x3; Conv64 3x3; Maxpool 3/2; Drop .8;
    Full 500; Output; no SUM. Read from a parameter file of the author's earlier code, whose later pools are averages; the paper
    knows Maxpool alone.

    Args:
        shape: (C, H, W) of the images. classes: values of the output. untied: all convolutions (not in the paper).
        form: "paper" or "code" (see the module).
    """
    net = _Maker(shape, untied, form)
    net.conv(32, 5)
    net.pool(3, 2)
    net.conv(32, 3)
    net.conv(32, 3)
    net.pool(3, 2)
    net.drop(0.5)
    net.conv(64, 3)
    net.conv(64, 3)
    net.pool(3, 2)
    net.drop(0.8)
    net.full(500)
    return net.ended(classes)


def amit2019_deepernet(
    shape: Shape = CIFAR, classes: int = 10, *, untied: bool = False, form: Form = "paper"
) -> nn.Sequential:
    """deepernet, pairs of 3x3 convolutions with 16, 32, 64 and 128 maps (amit2019 section 4): x [N, *shape] -> [N, classes].

    Pair 16; Pair 32; Maxpool 3/2; Drop .5; Pair 64; Maxpool 3/2; Pair 128; Maxpool 3/2; Drop .8; Full 500; Output, each pair
    with its SUM. The released code has 2x2 in the first convolution with 128 maps.

    Args:
        shape: (C, H, W) of the images. classes: values of the output. untied: all convolutions (not in the paper).
        form: "paper" or "code" (see the module).
    """
    net = _Maker(shape, untied, form)
    net.pair(16, 3)
    net.pair(32, 3)
    net.pool(3, 2)
    net.drop(0.5)
    net.pair(64, 3)
    net.pool(3, 2)
    net.pair(128, 3, first=3 if form == "paper" else 2)
    net.pool(3, 2)
    net.drop(0.8)
    net.full(500)
    return net.ended(classes)


def amit2019_deepnet_s(
    shape: Shape = CIFAR, classes: int = 10, *, untied: bool = False, form: Form = "paper"
) -> nn.Sequential:
    """deepnet_s, a reading from the released code: it is lost in the text (amit2019 figs 9, 11): x [N, *shape] -> [N, classes].

    Pair 16 3x3; Maxpool 3/3; Drop .5; Pair 64 3x3; Maxpool 2/2; Pair 64 2x2; Maxpool 2/2; Drop .5; Full 500; Output, each pair
    with its SUM. Five convolutions and two dense layers are the figure's "seven updated layers": untied, the first convolution
    stays tied. The paper trains that one for 100 epochs with the tied network and then holds it still: load its weights
    (``net[0].first``) from a tied network and set ``net[0].first.requires_grad_(False)``.

    Args:
        shape: (C, H, W) of the images. classes: values of the output. untied: all convolutions but the first.
        form: "paper" or "code" (see the module).
    """
    net = _Maker(shape, untied, form)
    net.pair(16, 3, tied_first=True)
    net.pool(3, 3)
    net.drop(0.5)
    net.pair(64, 3)
    net.pool(2, 2)
    net.pair(64, 2)
    net.pool(2, 2)
    net.drop(0.5)
    net.full(500)
    return net.ended(classes)
