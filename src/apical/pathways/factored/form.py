"""How direct feedback D is made: in full, or from less that is kept at a tap, so that it can be had at any size.

What is kept is multiplied with the rows of the output's error, and the result is laid over the positions of the activity. Both
steps are linear, so feedback that learns needs nothing but their adjoint (`Form.gather`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from apical.pathways.signals import carry, rows_of
from apical.plasticity.initialization import law_of
from apical.synapses.products import product

AT_ONCE = 2**20
"""Numbers of seeded feedback that are drawn at once in a backward pass."""
_GOLDEN, _FIRST, _SECOND = 0x9E3779B1 - 2**32, 0x7FEB352D, 0x846CA68B - 2**32


@dataclass(frozen=True)
class Form:
    """How the feedback of one tap is kept, and how a signal is made of it.

    Attributes:
        features: shape of the activity there, without the dimensions that count as the batch.
        outputs: values of the error in one row; of copies side by side, of one of them.
        channel: which dimension of the features counts channels.
        core: shape of the signal before it is laid over the positions: [channels], [channels, h, w], or the features.
        lead: how many dimensions of activity and output count as the batch: 2 per position of [N, T, *].
        rank: columns of P, where D = P Q; None where D is not a product. shared: whether one matrix is kept for all taps.
        seeded: whether nothing is kept but a seed. init: the law of what is drawn for shared or seeded feedback.
        copies: networks side by side.
    """

    features: torch.Size
    outputs: int
    channel: int
    core: torch.Size
    lead: int = 1
    rank: int | None = None
    shared: bool = False
    seeded: bool = False
    init: str = "weights"
    copies: int = 1

    @property
    def plain(self) -> bool:
        """Whether D is kept as it is, for samples as rows."""
        return self.lead == 1 and self.whole and not (self.rank or self.shared or self.seeded)

    @property
    def whole(self) -> bool:
        """Whether every position has feedback of its own."""
        return self.core == self.features

    @property
    def made(self) -> bool:
        """Whether what is kept is not the feedback itself, so that it can't be set."""
        return self.shared or self.seeded

    @property
    def shape(self) -> torch.Size:
        """Shape of the feedback at the tap: D [outputs, *core], or Q [rank, *core]."""
        return torch.Size([self.rank or self.outputs, *self.core])

    @property
    def fans(self) -> tuple[int, int]:
        """(fan in, fan out) of the weights that D stands for; Q's too, for P keeps the size of an error in the mean."""
        return self.core.numel() // self.copies, self.outputs

    def rows(self, e: Tensor, P: Tensor | None) -> Float[Tensor, "rows k"]:
        """The rows of an output's error as the tap hears them: e, or e P."""
        return rows_of(e, self.lead, P, self.copies)

    def weights(self, kept: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The feedback at the tap, of `shape`, from what is kept: the feedback, the matrix of all taps, or a seed."""
        if self.seeded:
            parts = [self.drawn(seed, 0, self.fans[0], dtype) for seed in kept.unbind()]
            return torch.cat(parts, 1).view(self.shape)
        return (self._part(kept) * self.scale).view(self.shape) if self.shared else kept

    def _part(self, matrix: Tensor) -> Tensor:
        """The columns of the matrix of all taps that belong to this one."""
        one = self.fans[0]
        return matrix[:, :one] if self.copies == 1 else matrix.unflatten(1, (self.copies, -1))[:, :, :one].flatten(1)

    @property
    def scale(self) -> float:
        """The scale of drawn feedback: of a normal law its deviation, of a uniform one its bound."""
        return law_of(self.init)[1](*self.fans)

    def drawn(self, seed: Tensor, first: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
        """Columns of one copy's seeded feedback [k, columns], equal on every device: a hash of seed, row and column."""
        place = torch.arange(first, first + columns, dtype=torch.int32, device=seed.device)
        row = torch.arange(self.shape[0], dtype=torch.int32, device=seed.device)
        low, high = (seed & 0x7FFFFFFF).to(torch.int32), ((seed >> 31) & 0x7FFFFFFF).to(torch.int32)
        found = _mixed(place.mul_(_GOLDEN).add_(low)).unsqueeze(0) ^ _mixed(row.mul_(_GOLDEN).add_(high)).unsqueeze(1)
        # 24 bits, as the odd numbers from -(2^24 - 1) to 2^24 - 1.
        found = _mixed(found).bitwise_and_(0xFFFFFF).mul_(2).add_(1 - 2**24).to(torch.float32)
        kind, scale = law_of(self.init)[0], self.scale
        if kind == "normal":
            found.mul_(2.0**-24).erfinv_().mul_(math.sqrt(2) * scale)
        else:
            found.mul_(scale * 2.0**-24)
        return found if dtype is None else found.to(dtype)

    def carry(self, rows: Float[Tensor, "rows k"], kept: Tensor, shape: torch.Size, *, channels_last: bool) -> Tensor:
        """The signal at activity of `shape`, from the rows of the error. Equal positions may share memory.

        Args:
            rows: as `rows` gives them. kept: at the tap. channels_last: whether the activity has that layout.
        """
        if self.whole and self.lead == 1 and not self.made:
            return carry(rows, kept, shape, channels_last=channels_last, copies=self.copies)
        flat = torch.Size((len(rows), self.core.numel()))
        if self.seeded:
            signal = self._by_blocks(rows, kept)
        elif self.shared:
            signal = carry(rows, self._part(kept), flat, copies=self.copies).mul_(self.scale)
        else:
            signal = carry(rows, kept.flatten(1), flat, copies=self.copies)
        signal = self.spread(signal, shape)
        # Where positions share memory, the layout is that of whatever the signal meets.
        turn = channels_last and 0 not in signal.stride()
        return signal.contiguous(memory_format=torch.channels_last) if turn else signal

    def _by_blocks(self, rows: Tensor, seeds: Tensor) -> Tensor:
        """Rows times seeded feedback [rows, core], of which no more is drawn at once than `AT_ONCE`."""
        k, one = self.shape[0], self.fans[0]
        size = max(1, AT_ONCE // k)
        parts = [
            product(own.contiguous(), self.drawn(seed, first, min(size, one - first), rows.dtype))
            for own, seed in zip(rows.unflatten(1, (self.copies, -1)).unbind(1), seeds.unbind(), strict=True)
            for first in range(0, one, size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def spread(self, signal: Float[Tensor, "rows core"], shape: torch.Size) -> Tensor:
        """A signal laid over the positions of activity of `shape`, each share divided by how many positions hear it."""
        batch, features = shape[: self.lead], shape[self.lead :]
        if self.whole:
            return signal.reshape(shape)
        signal = signal * self._share(features)
        if len(self.core) == 1:
            sizes = [size if d == self.channel else 1 for d, size in enumerate(features)]
            return signal.view(*batch, *sizes).expand(shape)
        if (cells := self._cells(features)) is not None:
            ones = [size for own in self.core for size in (own, 1)]
            return signal.view(*batch, *ones).expand(*batch, *cells).reshape(shape)
        signal = signal.view(*batch, *self.core)
        for d, index in self._nearest(features, signal.device):
            signal = signal.index_select(self.lead + d, index)
        return signal

    def gather(self, x: Tensor) -> Float[Tensor, "rows core"]:
        """The adjoint of `spread`: for each value of the core the activity at its positions, summed and shared likewise."""
        return self._summed(x) if self.whole else self._summed(x) * self._share(x.shape[self.lead :])

    def targets(self, values: Tensor) -> Float[Tensor, "rows core"]:
        """What rows times the core should be, for a signal with the least squares of its difference to `values`."""
        found, features = self._summed(values), values.shape[self.lead :]
        if self.whole or len(self.core) == 1:
            return found  # The sum over all positions.
        counts = torch.ones((), dtype=found.dtype, device=found.device)
        for d, index in self._nearest(features, values.device):
            one = torch.bincount(index, minlength=self.core[d]).to(found.dtype)
            counts = counts * one.view([-1 if d == other else 1 for other in range(len(features))])
        mean = features.numel() / self.core.numel()
        return found * (mean / counts).expand(self.core).flatten()

    def _summed(self, x: Tensor) -> Tensor:
        """Activity [*batch, *features] summed over the positions that share a value of the core: [rows, core]."""
        if not self.whole:
            if len(self.core) == 1:
                x = x.sum([self.lead + d for d in range(x.dim() - self.lead) if d != self.channel])
            elif (cells := self._cells(x.shape[self.lead :])) is not None:
                x = x.reshape(*x.shape[: self.lead], *cells).sum([self.lead + 2 * d + 1 for d in range(len(self.core))])
            else:
                for d, index in self._nearest(x.shape[self.lead :], x.device):
                    sizes = list(x.shape)
                    sizes[self.lead + d] = self.core[d]
                    x = x.new_zeros(sizes).index_add(self.lead + d, index, x)
        return x.flatten(0, self.lead - 1).flatten(1)

    def _share(self, features: torch.Size) -> float:
        return self.core.numel() / features.numel()

    def _cells(self, features: torch.Size) -> list[int] | None:
        """Numbers of cells of a grid, and of positions in each, dimension by dimension; None where cells differ in size."""
        pairs = [(own, size // own) for own, size in zip(self.core, features, strict=True) if size % own == 0]
        return [size for pair in pairs for size in pair] if len(pairs) == len(features) else None

    def _nearest(self, features: torch.Size, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """Dimensions of a grid that are smaller than the activity's, each with the grid's index of every position."""
        for d, (own, size) in enumerate(zip(self.core, features, strict=True)):
            if own != size:
                yield d, torch.arange(size, device=device).mul_(own).div_(size, rounding_mode="floor")

    def in_full(self, kept: Tensor, P: Tensor | None) -> Tensor:
        """D in full [outputs, *features], of one network: what the error is multiplied with in the end."""
        D = self.weights(kept).flatten(1)
        D = D if P is None else P.to(D.dtype) @ D
        one = Form(self.features, self.outputs, self.channel, self.core)
        return one.spread(D, torch.Size([self.outputs, *self.features]))

    def refusal(self, shape: torch.Size) -> str | None:
        """The shape of activity that can be heard here, in words, if `shape` is another; maps of other sizes share as well."""
        features = shape[self.lead :]
        fits = features == self.features
        if not (self.whole or fits) and len(features) == len(self.features):
            fits = features[self.channel] == self.features[self.channel]
            if len(self.core) > 1:
                fits = fits and all(own <= size for own, size in zip(self.core, features, strict=True))
        return None if fits else f"[{', '.join(['N', *'T' * (self.lead - 1), *map(str, self.features)])}]"


def _mixed(x: Tensor) -> Tensor:
    """A 32-bit hash of every entry, in place (multiply, xor, shift)."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_SECOND)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
