"""Matrix products on a CPU, in the shapes that layers, teaching signals and updates have.

BLAS is quickest with products whose sides are alike. Those here are not: a minibatch is small beside a layer, a signal from ten
outputs to thousands of units has an inner dimension of ten. How they are best made depends on whose CPU it is: PyTorch's own way
is the quickest on Intel's but for a few rows, and on AMD's it is not. What was measured is in benchmarks/README.md.
"""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def _by_amd() -> bool:
    with suppress(OSError):
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return "AuthenticAMD" in platform.processor()


AMD = _by_amd()
"""Whether the CPU is one of AMD's."""
_NARROW = 32
"""Inner dimension up to which a product is cut into blocks of rows."""
_WIDE = 400
"""Columns from which that pays."""
_ROWS = (8, 10, 4, 5)
"""Rows of a block, the best first."""
_TALL = 4096
"""Entries of a matrix per row of the other from which the large one had better come first."""
_FEW = 32
"""Rows up to which it had on CPUs that are not AMD's."""


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """The matrix product a b, in new memory."""
    n, inner = a.shape
    columns = b.shape[1]
    if AMD and a.dtype == torch.float32 and a.device.type == "cpu":
        if inner <= _NARROW:
            if columns >= _WIDE and n >= 32:
                for rows in _ROWS:
                    if n % rows == 0:
                        blocks = n // rows
                        return torch.bmm(a.unflatten(0, (blocks, rows)), b.expand(blocks, *b.shape)).flatten(0, 1)
        elif inner * columns >= _TALL * n and 2 * columns <= 3 * inner:
            return torch.mm(b.t(), a.t()).t().contiguous()
        elif inner >= 64 and n * columns >= 4096 and not torch._C._are_functorch_transforms_active():
            # Added to zeros, because BLAS is called in another way then.
            return a.new_zeros((n, columns)).addmm_(a, b)
    return torch.mm(a, b)


def affine(x: Float[Tensor, "*n i"], weight: Float[Tensor, "o i"], bias: Tensor | None) -> Float[Tensor, "*n o"]:
    """A linear layer, x W^T + b, without a graph."""
    if x.dim() != 2 or x.dtype != torch.float32 or x.device.type != "cpu" or weight.numel() < _TALL * len(x):
        return F.linear(x, weight, bias)
    if not (AMD or 8 <= len(x) <= _FEW):
        return F.linear(x, weight, bias)
    y = torch.mm(weight, x.t()) if bias is None else torch.addmm(bias[:, None], weight, x.t())
    return y.t().contiguous()
