"""Figure 8: filters of layers whose positions share no weights, compared and shown."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 4
"""Positions in each direction at which filters are compared."""


def similarity(weight: Tensor) -> tuple[float, float]:
    """Mean correlation of filters at two positions: of the same map, and of two different ones, as a control.

    Args:
        weight: [maps, h, w, in, *kernel].
    """
    maps, high, wide = weight.shape[:3]
    places = [(high * i // GRID, wide * j // GRID) for i in range(GRID) for j in range(GRID)]
    filters = torch.stack([weight[:, i, j].flatten(1) for i, j in dict.fromkeys(places)]).double()
    filters = filters - filters.mean(2, keepdim=True)
    filters = filters / filters.norm(dim=2, keepdim=True).clamp(min=1e-12)
    found = torch.einsum("pmk,qnk->pqmn", filters, filters)
    elsewhere = ~torch.eye(len(filters), dtype=torch.bool)
    same = torch.eye(maps, dtype=torch.bool)
    pairs = found[elsewhere]
    return float(pairs[:, same].mean()), float(pairs[:, ~same].mean())


def mosaic(weight: Tensor) -> list[list[list[float]]]:
    """The filters of the first maps (rows) at four positions of the image (columns), as one image [H][W][3]."""
    _, high, wide = weight.shape[:3]
    places = [
        (high // 4, wide // 4),
        (high // 4, 3 * wide // 4),
        (3 * high // 4, wide // 4),
        (3 * high // 4, 3 * wide // 4),
    ]
    shown = weight[: 2 * GRID, :, :].detach()
    filters = torch.stack([shown[:, i, j] for i, j in places], 1)[:, :, :3].permute(0, 1, 3, 4, 2)
    filters = F.pad(filters, (0, 0, 1, 1, 1, 1), value=float(filters.min()))
    image = filters.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)
    return [[[round(float(c), 4) for c in pixel] for pixel in row] for row in image]
