"""Products of unequal sides against double precision."""

from unittest.mock import patch

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apical.synapses import products
from apical.synapses.products import affine, product


@given(
    rows=st.sampled_from((1, 2, 7, 10, 31, 32, 40, 50, 60, 64, 128)),
    inner=st.sampled_from((1, 2, 10, 32, 33, 63, 64, 100, 2000)),
    columns=st.sampled_from((1, 3, 64, 399, 400, 1024, 3000)),
    layouts=st.tuples(st.sampled_from("cts"), st.sampled_from("cts")),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    amd=st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_product_is_right_for_every_shape_and_stride(rows, inner, columns, layouts, dtype, amd):
    def made(shape, layout):
        if layout == "t":
            return torch.randn(shape[::-1], dtype=dtype).t()
        return (
            torch.randn(shape[0], 2 * shape[1], dtype=dtype)[:, ::2]
            if layout == "s"
            else torch.randn(shape, dtype=dtype)
        )

    a, b = made((rows, inner), layouts[0]), made((inner, columns), layouts[1])
    with patch.object(products, "AMD", amd):
        found, exact = product(a, b), a.double() @ b.double()
    assert found.dtype == dtype
    assert found.shape == exact.shape
    assert found.is_contiguous()
    scale = (a.double().abs() @ b.double().abs()).clamp_min(1e-30)
    assert ((found.double() - exact).abs() / scale).max() < 4 * inner**0.5 * torch.finfo(dtype).eps


@given(
    rows=st.sampled_from((0, 1, 3, 8, 32, 64)),
    sizes=st.sampled_from(((3, 5), (100, 50), (640, 500), (70, 2000))),
    bias=st.booleans(),
    leading=st.booleans(),
    strided=st.booleans(),
    amd=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_affine_is_a_linear_layer(rows, sizes, bias, leading, strided, amd):
    inputs, outputs = sizes
    x = torch.randn(inputs, rows).t() if strided else torch.randn(rows, inputs)
    x = x[None] if leading else x
    W, b = torch.randn(outputs, inputs), torch.randn(outputs) if bias else None
    with patch.object(products, "AMD", amd):
        found = affine(x, W, b)
    exact = x.double() @ W.double().t() + (0 if b is None else b.double())
    assert found.shape == exact.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
