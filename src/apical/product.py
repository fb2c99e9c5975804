"""Matrix products on a CPU, in the shapes that teaching signals and updates have.

BLAS is quickest with products whose sides are alike. Those here are not: a signal from ten outputs to thousands of units has an
inner dimension of ten, an update has one of the batch's size. What was measured is in benchmarks/README.md.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_NARROW = 32
"""Inner dimension up to which a product is cut into blocks of rows."""
_WIDE = 400
"""Columns from which that pays."""
_ROWS = (8, 10, 4, 5)
"""Rows of a block, the best first."""


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """The matrix product a b, in new memory."""
    n, inner = a.shape
    if a.dtype == torch.float32 and a.device.type == "cpu":
        if inner >= 64 and n * b.shape[1] >= 4096:
            # Added to zeros, because BLAS is called in another way then.
            return a.new_zeros((n, b.shape[1])).addmm_(a, b)
        if inner <= _NARROW and b.shape[1] >= _WIDE and n >= 32:
            for rows in _ROWS:
                if n % rows == 0:
                    blocks = n // rows
                    return torch.bmm(a.unflatten(0, (blocks, rows)), b.expand(blocks, *b.shape)).flatten(0, 1)
    return torch.mm(a, b)
