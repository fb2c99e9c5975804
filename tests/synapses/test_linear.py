"""Linear synapses against the plain layer's own autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from synapses.plain import compare, learn

# The plain layer pads a copy there, and says so; once a process, so any test here may be the one to see it.
pytestmark = [pytest.mark.filterwarnings("ignore:Using padding='same'")]


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 1, 3), (0,), (2, 0), (1,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_with_any_leading_dimensions(leading, bias):
    torch.manual_seed(0)
    compare(nn.Linear(5, 3, bias=bias, dtype=torch.float64), torch.randn(*leading, 5, dtype=torch.float64))


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded", "flipped storage"])
def test_linear_with_inputs_that_are_not_contiguous(view):
    torch.manual_seed(0)
    x = {
        "transposed": torch.randn(5, 4, dtype=torch.float64).t(),
        "strided": torch.randn(8, 10, dtype=torch.float64)[::2, ::2],
        "expanded": torch.randn(1, 5, dtype=torch.float64).expand(4, 5),
        "flipped storage": torch.randn(5, 3, 2, dtype=torch.float64).permute(2, 1, 0),
    }[view]
    plain = nn.Linear(5, 3, dtype=torch.float64)
    expected = learn(plain, x, None)
    apical.attach(plain, "bp")
    for a, b in zip(learn(plain, x, None), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed", "same", "reflect"])
def test_lower_precision(dtype, tolerance, kind):
    torch.manual_seed(0)
    plain = {
        "linear": lambda: nn.Linear(6, 5),
        "conv": lambda: nn.Conv2d(6, 4, 3, stride=2, groups=2),
        "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2),
        "same": lambda: nn.Conv2d(6, 4, (2, 3), padding="same"),
        "reflect": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    }[kind]().to(dtype)
    x = torch.randn((7, 6) if kind == "linear" else (3, 6, 7, 6)).to(dtype)
    compare(plain, x, tolerance=tolerance)


def test_complex_weights_are_conjugated_as_autograd_does_it_or_refused():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex128), nn.Linear(3, 2, dtype=torch.complex128))
    x = torch.randn(5, 4, dtype=torch.complex128)
    plain(x).abs().sum().backward()
    expected = [p.grad.clone() for p in plain.parameters()]
    plain.zero_grad()
    try:
        apical.attach(plain, "bp")
    except ValueError as error:
        assert "complex" in str(error)  # noqa: PT017
        return
    plain(x).abs().sum().backward()
    for p, g in zip(plain.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)
