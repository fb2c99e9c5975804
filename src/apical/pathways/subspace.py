"""Layer-wise signals by few directions of the error: (delta P^T)(P B) in place of delta B.

P [r, out] has orthonormal rows. Seen through it, a signal costs about r / out of what it costs whole, and nothing else of a rule
changes: how the weights learn, and how the feedback B does. A convolution's channels are projected (1x1), and go back through the
r channels of P B; groups, and copies side by side, have a P each. P B has no batch in it.

Which directions matters: r random ones lose what r leading ones keep. `Subspace.follow` finds these locally, from the layer's own
errors: the running mean C of their covariance, and one step of orthogonal iteration, P <- orthonormalised(P C).
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from apical.distributed import average
from apical.noise import channels_last
from apical.per_copy import Streams, generator_from
from apical.synapses.storage import keep

if TYPE_CHECKING:
    from apical.synapses.synapse import Geometry, Synapse

_STAY = 1e-6
"""How much of P stays beside P C, whose trace is 1: directions in which no error ever went are no zeros to orthonormalise."""

_count = itertools.count()
_all: weakref.WeakValueDictionary[int, Subspace] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Tracking:
    """How P follows the errors (see `apical.LayerWise`).

    Attributes:
        rows: most errors that one turn looks at, evenly spaced over batch and positions. memory: of C, per turn.
        every: backward passes from one turn to the next.
    """

    rows: int
    memory: float
    every: int


class Subspace:
    """The directions through which a synapse's error is seen from below; P and C are buffers of the synapse.

    Attributes:
        groups: of channels that have a P each. tracking: None where P stays as it was drawn.
        passes: backward passes so far, by which turns are counted.
    """

    def __init__(self, groups: int, tracking: Tracking | None) -> None:
        self.groups, self.tracking, self.passes = groups, tracking, 0
        self._enter()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._enter()

    def _enter(self) -> None:
        self._key = next(_count)
        _all[self._key] = self

    def due(self, passes: int = 1) -> bool:
        """Whether P turns in one of so many backward passes to come."""
        return self.tracking is not None and -self.passes % self.tracking.every < passes

    def respond(
        self,
        synapse: Synapse,
        x: Tensor | None,
        delta: Tensor,
        feedback: Tensor | None,
        shape: torch.Size,
        geometry: Geometry,
        need_weight: bool,
        need_bias: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One backward step as `Synapse.respond` makes it, with the signal (delta P^T)(P B)."""
        _, made, bias = synapse.respond(x, delta, None, shape, geometry, need_weight, need_bias)
        if feedback is None:
            return None, made, bias
        P = synapse._buffers["projection"]
        assert P is not None
        P = P.to(delta.dtype)
        few, B = self.projected(synapse, delta, P), self.reduced(synapse, feedback, P)
        # With the input, for kernels go by its memory format.
        signal, _, _ = synapse.respond(x, few, B, shape, geometry, False, False)
        return signal, made, bias

    def projected(self, synapse: Synapse, delta: Tensor, P: Tensor) -> Tensor:
        """The error delta P^T: r units, or channels, of each group."""
        if synapse.unit_dim == -1:
            return self._of_rows(delta, P)
        if channels_last(delta):
            return self._of_rows(delta.movedim(1, -1), P).movedim(-1, 1)
        # Products of matrices: as a convolution of width 1 they took two to ten times as long on a CPU.
        maps = delta.reshape(len(delta), self.groups, P.shape[1], -1)
        made = torch.matmul(P.view(self.groups, -1, P.shape[1]), maps)
        return made.view(len(delta), len(P), *delta.shape[2:])

    def _of_rows(self, delta: Tensor, P: Tensor) -> Tensor:
        if self.groups == 1:
            return torch.matmul(delta, P.t())
        own = delta.unflatten(-1, (self.groups, -1))
        return torch.einsum("...go,gro->...gr", own, P.unflatten(0, (self.groups, -1))).flatten(-2)

    def reduced(self, synapse: Synapse, B: Tensor, P: Tensor) -> Tensor:
        """P B: feedback weights like B, with r outputs for each group."""
        groups = self.groups
        if synapse.output_dim == 1:  # [groups in, out, *]
            if B.dim() == 2:
                return torch.mm(B, P.t())
            own = B.reshape(groups, B.shape[0] // groups, B.shape[1], -1)
            return torch.matmul(P.view(groups, 1, -1, P.shape[1]), own).reshape(B.shape[0], -1, *B.shape[2:])
        turned = channels_last(B)
        B = B.movedim(1, -1) if turned else B
        if groups == 1:
            made = torch.mm(P, B.reshape(len(B), -1))
        else:
            own = B.reshape(groups, len(B) // groups, -1)
            made = torch.bmm(P.view(groups, -1, P.shape[1]), own).flatten(0, 1)
        made = made.view(-1, *B.shape[1:])
        return made.movedim(-1, 1) if turned else made

    def seen(self, synapse: Synapse, B: Tensor) -> Tensor:
        """P^T P B, by which a whole error goes back as it does through P: what a subspace makes of feedback, for measures."""
        P = synapse._buffers["projection"]
        assert P is not None
        P = P.to(B.dtype).unflatten(0, (self.groups, -1))
        squares = torch.bmm(P.transpose(1, 2), P).flatten(0, 1)
        return self.reduced(synapse, B, squares)

    def follow(self, synapse: Synapse, delta: Tensor) -> None:
        """Count a backward pass, and turn P if it is due."""
        if self.tracking is None:
            return
        P, C = synapse._buffers["projection"], synapse._buffers["covariance"]
        assert P is not None
        assert C is not None
        if torch.compiler.is_compiling():
            _follow(delta, P, C, self._key, synapse.unit_dim != -1)
        else:
            self.advance(delta, P, C, synapse.unit_dim != -1)

    @torch.no_grad()
    def advance(self, delta: Tensor, P: Tensor, C: Tensor, channels: bool) -> None:
        """What `follow` does, of tensors alone. channels: whether units are counted by dimension 1 of delta, else by the last."""
        tracking, due, turn = self.tracking, self.due(), self.passes
        self.passes += 1
        if tracking is None or not due:
            return
        with torch.autocast(delta.device.type, enabled=False):  # A backward pass may be made inside.
            self._turn(delta, P, C, channels, tracking, turn)

    def _turn(self, delta: Tensor, P: Tensor, C: Tensor, channels: bool, tracking: Tracking, turn: int) -> None:
        rows = _rows(delta, channels, tracking.rows, turn // tracking.every)
        rows = rows.to(torch.promote_types(C.dtype, torch.float32)).unflatten(1, (self.groups, -1)).transpose(0, 1)
        trace = rows.square().sum((1, 2), keepdim=True)
        average([trace])
        # An error that is zero, or not finite, as before a gradient scaler has found its scale, teaches nothing. Not asked by the
        # CPU, which would have to wait.
        told = (trace > 0) & trace.isfinite()
        rows = torch.where(told, rows * ((1 - tracking.memory) / trace).sqrt(), 0.0)
        mean = C.to(rows.dtype).mul_(torch.where(told, tracking.memory, 1.0)).baddbmm_(rows.transpose(1, 2), rows)
        average([mean])
        if mean is not C:
            C.copy_(mean)
        own = P.view(self.groups, -1, P.shape[1]).to(rows.dtype)
        P.copy_(_orthonormal(torch.baddbmm(own, own, mean, beta=_STAY)).flatten(0, 1))


def _rows(delta: Tensor, channels: bool, most: int, turn: int) -> Float[Tensor, "n units"]:
    """At most about `most` errors, evenly spaced; other ones with the next turn."""
    if not channels:
        rows = delta.reshape(-1, delta.shape[-1])
        step = _step(len(rows), most)
        return rows[turn % step :: step]
    maps = delta.flatten(2)
    step = _step(len(maps), most)
    maps = maps[turn % step :: step]
    step = _step(maps.shape[2], max(1, most // max(1, len(maps))))
    return maps[:, :, turn % step :: step].transpose(1, 2).flatten(0, 1)


def _step(count: int, most: int) -> int:
    """From one of so many to the next, that there be at most `most`; odd, as maps' sides are even and columns are to change."""
    return 1 if count <= most else -(-count // most) | 1


def _orthonormal(Y: Float[Tensor, "g r out"]) -> Float[Tensor, "g r out"]:
    """An orthonormal basis of what the rows of Y span, for each group."""
    return torch.linalg.qr(Y.transpose(1, 2))[0].transpose(1, 2)


def aside(generator: torch.Generator) -> list[torch.Generator]:
    """Where directions are drawn from, for each copy: by the learner's generator, which goes on as if nobody had drawn."""
    again = generator_from(generator.get_state(), generator.device)
    sources = again.own if isinstance(again, Streams) else (again,)
    seeds = [int(torch.randint(2**62, (), generator=source, device=source.device)) for source in sources]
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


def give(synapse: Synapse, rank: int, tracking: Tracking | None, sources: Sequence[torch.Generator]) -> None:
    """Have a synapse seen through `rank` directions for each group, drawn at random, that are tracked or stay.

    sources: of copies side by side one each, so that each draws what it would alone.
    """
    weight, groups = synapse.weight_now, groups_of(synapse)
    out = outputs(synapse) // groups
    shape = (groups // len(sources), rank, out)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    drawn = [torch.randn(shape, generator=source, device=source.device, dtype=dtype) for source in sources]
    keep(synapse, "projection", _orthonormal(torch.cat(drawn)).flatten(0, 1).contiguous().to(weight.device))
    if tracking is not None:
        keep(synapse, "covariance", weight.new_zeros((groups, out, out), dtype=dtype))
    synapse.subspace = Subspace(groups, tracking)


def auto(synapse: Synapse) -> int:
    """The rank that "auto" stands for; all outputs where none spares time.

    By shape alone, from kernels measured on one CPU core (n 128 for layers of rows, 32 for maps): a 3x3 convolution's
    signal took 0.6 (32 channels, 16x16), 0.4 (64, 8x8), 0.35 (128 and 256) of its time through a quarter of the outputs, one of
    16 channels the same; a linear layer's 0.3 (1000-1000) and 0.2 (2048-2048) through 32 and 64, as P B has no batch in it; and a
    1x1 convolution is itself no more than a projection.
    """
    weight, groups = synapse.weight_now, groups_of(synapse)
    out = outputs(synapse) // groups
    if synapse.unit_dim is None:
        return out
    if weight.dim() == 2:
        inward = weight.shape[1 - (synapse.output_dim or 0)]
        return 32 if min(out, inward) >= 512 else out
    inward = weight.shape[0] // groups if synapse.output_dim == 1 else weight.shape[1]
    return max(16, out // 4) if min(out, inward) >= 32 and math.prod(weight.shape[2:]) >= 9 else out


def outputs(synapse: Synapse) -> int:
    """How many units, or channels, a synapse has at its output, of all groups."""
    out = synapse.weight_now.shape[synapse.output_dim or 0]
    return out * groups_of(synapse) if synapse.output_dim == 1 else out


def groups_of(synapse: Synapse) -> int:
    """How many groups of channels are connected among themselves alone, copies side by side included."""
    return getattr(synapse, "groups", synapse.copies)


@torch.library.custom_op(
    "apical::follow", mutates_args=("projection", "covariance"), tags=(torch.Tag.cudagraph_unsafe,)
)
def _follow(delta: Tensor, projection: Tensor, covariance: Tensor, key: int, channels: bool) -> None:
    """Count a backward pass of the synapse whose subspace has that key, in compiled code."""
    _all[key].advance(delta, projection, covariance, channels)
