"""Convolutions of every geometry against the plain layer's own autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from torch import nn

import apical
from synapses.plain import CONVOLUTIONS, MODES, QUICK, compare, convolution, learn, passes, transposed

# The plain layer pads a copy there, and says so; once a process, so any test here may be the one to see it.
pytestmark = [pytest.mark.filterwarnings("ignore:Using padding='same'")]


@QUICK
@given(convolution())
def test_convolution_of_any_geometry(case):
    layer, x = case
    assume(passes(layer, x))
    compare(layer, x)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["same", "valid", 1, 0])
@pytest.mark.parametrize("kernel", [2, 3])
def test_convolution_with_every_padding(spatial, mode, padding, kernel):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[spatial](2, 4, kernel, padding=padding, padding_mode=mode, groups=2, dtype=torch.float64)
    compare(layer, torch.randn(2, 2, *(5, 4, 6)[:spatial], dtype=torch.float64))


@QUICK
@given(transposed())
def test_transposed_convolution_of_any_geometry(case):
    layer, x, given_size, more = case
    assume(passes(layer, x))
    kwargs = {}
    if given_size is not None:
        spatial = len(more)
        with torch.no_grad():
            y = layer(x)
        base = [n - p for n, p in zip(y.shape[-spatial:], layer.output_padding, strict=True)]
        wanted = [b + m for b, m in zip(base, more, strict=True)]
        # nn.ConvTranspose takes the size of the space alone, or of the whole output. Unbatched: a test of its own, below.
        lead = list(y.shape[:-spatial]) if given_size == "whole" and y.dim() == spatial + 2 else []
        kwargs = {"output_size": [*lead, *wanted]}
        assume(passes(layer, x, **kwargs))
    compare(layer, x, **kwargs)


def test_output_size_positional_and_torch_size():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    compare(layer, x, [8, 7])
    compare(layer, x, torch.Size([2, 2, 8, 8]))


def test_output_size_of_an_unbatched_input_may_name_the_channels_as_in_the_plain_layer():
    torch.manual_seed(0)
    compare(nn.ConvTranspose1d(2, 3, 3, stride=2).double(), torch.randn(2, 5).double(), output_size=[3, 12])


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 3), lambda: nn.ConvTranspose2d(3, 4, 3)])
def test_convolution_with_inputs_that_are_not_contiguous(make):
    torch.manual_seed(0)
    layer = make().double()
    base = torch.randn(2, 6, 7, 3, dtype=torch.float64)
    for x in (
        base.permute(0, 3, 1, 2),
        base.permute(0, 3, 2, 1),
        base.permute(0, 3, 1, 2)[..., ::2],
        base[0].permute(2, 0, 1),
    ):
        assert not x.is_contiguous()
        expected = learn(copy.deepcopy(layer), x, None)
        attached = copy.deepcopy(layer)
        apical.attach(attached, "bp")
        for a, b in zip(learn(attached, x, None), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_cotangent_that_is_expanded_or_strided():
    torch.manual_seed(0)
    for layer, x in (
        (nn.Linear(4, 3), torch.randn(5, 4)),
        (nn.Linear(4, 3), torch.randn(2, 5, 4)),
        (nn.Conv2d(4, 3, 3), torch.randn(2, 4, 5, 6)),
    ):
        layer, x = layer.double(), x.double()
        y = layer(x)
        for cotangent in (torch.ones((), dtype=torch.float64).expand_as(y), torch.randn(y.mT.shape).double().mT):
            expected = learn(copy.deepcopy(layer), x, cotangent)
            attached = copy.deepcopy(layer)
            apical.attach(attached, "bp")
            for a, b in zip(learn(attached, x, cotangent), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
