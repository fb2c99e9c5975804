"""A synapse beside the plain layer."""

from __future__ import annotations

import copy

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import apical
from networks import seed

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MODES = ("zeros", "reflect", "replicate", "circular")
KINDS = {
    nn.Linear: apical.LinearSynapse,
    nn.Conv1d: apical.Conv1dSynapse,
    nn.Conv2d: apical.Conv2dSynapse,
    nn.Conv3d: apical.Conv3dSynapse,
    nn.ConvTranspose1d: apical.ConvTranspose1dSynapse,
    nn.ConvTranspose2d: apical.ConvTranspose2dSynapse,
    nn.ConvTranspose3d: apical.ConvTranspose3dSynapse,
}


def learn(layer: nn.Module, x: Tensor, cotangent: Tensor | None, *args, **kwargs) -> list[Tensor]:
    """[output, input gradient, weight gradient, bias gradient]"""
    x = x.detach().requires_grad_(True)
    layer.zero_grad()
    y = layer(x, *args, **kwargs)
    y.backward(torch.ones_like(y) if cotangent is None else cotangent)
    grads = [x.grad, layer.weight.grad] + ([] if layer.bias is None else [layer.bias.grad])
    assert all(g is not None for g in grads)
    return [y.detach(), *(g.clone() for g in grads)]


def compare(plain: nn.Module, x: Tensor, *args, tolerance: float = 1e-12, **kwargs) -> None:
    """Outputs bitwise and gradients within tolerance, under bp, and under fa with B = W, for every request of gradients."""
    with torch.no_grad():
        shape = plain(x, *args, **kwargs).shape
    cotangent = torch.randn(shape, generator=seed(9), dtype=torch.float64).to(x.dtype)
    expected = learn(plain, x, cotangent, *args, **kwargs)
    for rule in ("bp", "fa", "kp"):
        layer = copy.deepcopy(plain)
        learner = apical.attach(layer, apical.rule(rule, track=True), generator=seed())
        assert type(layer) is KINDS[type(plain)]
        if rule != "bp":
            learner.synapses[""].feedback = layer.weight.detach().clone()
        got = learn(layer, x, cotangent, *args, **kwargs)
        assert torch.equal(got[0], expected[0]), f"{rule}: the output is not bitwise the plain layer's"
        for name, a, b in zip(("input", "weight", "bias"), got[1:], expected[1:], strict=False):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name, r=rule: f"{r} {n}: {m}"
            )
        if rule == "kp":
            assert torch.equal(layer._parameters["feedback"].grad, layer.weight.grad)
        with torch.no_grad():
            assert torch.equal(layer(x, *args, **kwargs), plain(x, *args, **kwargs))
        with torch.inference_mode():
            assert torch.equal(layer(x, *args, **kwargs), expected[0])
        only_some(layer, x, cotangent, expected, tolerance, *args, **kwargs)
        assert learner.detach() is layer
        assert type(layer) is type(plain)


def only_some(layer, x, cotangent, expected, tolerance, *args, **kwargs) -> None:
    """Each gradient alone, the others switched off: a kernel that does three products must not mix them up."""
    for wanted in range(1, len(expected)):
        layer.zero_grad()
        leaf = x.detach().requires_grad_(wanted == 1)
        layer.weight.requires_grad_(wanted == 2)
        if layer.bias is not None:
            layer.bias.requires_grad_(wanted == 3)
        layer(leaf, *args, **kwargs).backward(cotangent)
        grads = [leaf.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad]
        for at, grad in enumerate(grads, start=1):
            if at == wanted:
                torch.testing.assert_close(grad, expected[at], rtol=tolerance, atol=tolerance)
            else:
                assert grad is None
    for parameter in layer.parameters():
        parameter.requires_grad_(True)


def build(draw, spatial: int) -> tuple[nn.Module, Tensor]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inward, outward = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    mode = draw(st.sampled_from(MODES))
    stride: tuple[int, ...] = (1,) * spatial
    padding: str | tuple[int, ...] = draw(st.sampled_from(["same", "valid", "number", "number", "number"]))
    if padding == "number":
        padding = tuple(draw(st.integers(0, 3)) for _ in range(spatial))
    if padding != "same":
        stride = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    bias = draw(st.booleans())
    size = tuple(draw(st.integers(1, 9 if spatial < 3 else 6)) for _ in range(spatial))
    batch = draw(st.sampled_from([1, 2, 3, 0, None]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = CONVOLUTIONS[spatial](
        inward,
        outward,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=mode,
        dtype=torch.float64,
    )
    return layer, torch.randn(*(() if batch is None else (batch,)), inward, *size, dtype=torch.float64)


@st.composite
def convolution(draw):
    return build(draw, draw(st.sampled_from([1, 2, 2, 3])))


def passes(layer: nn.Module, x: Tensor, *args, **kwargs) -> bool:
    """Whether the plain layer itself can take x, forward and backward (too small an input, unsupported padding)."""
    try:
        learn(layer, x, None, *args, **kwargs)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


@st.composite
def transposed(draw):
    spatial = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2]))
    inward, outward = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(spatial))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(spatial))
    size = tuple(draw(st.integers(1, 6)) for _ in range(spatial))
    batch = draw(st.sampled_from([1, 2, 0, None]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = TRANSPOSED[spatial](
        inward,
        outward,
        kernel,
        stride=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
        dtype=torch.float64,
    )
    x = torch.randn(*(() if batch is None else (batch,)), inward, *size, dtype=torch.float64)
    given_size = draw(st.sampled_from([None, "spatial", "whole"]))
    return layer, x, given_size, [draw(st.integers(0, s - 1)) for s in stride]
