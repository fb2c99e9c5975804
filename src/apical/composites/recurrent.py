"""Recurrent layers step by step, their input and recurrent weights each a layer (`torch.nn.LSTM`, `GRU`, `RNN` and cells)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from typing_extensions import override

from apical.composites.projection import Projection
from apical.composites.unfused import Unfused, unfuses

State = tuple[Tensor, ...]
"""What a cell hands on to its next step: (h,), or (h, c) of an LSTM."""


def lstm(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """Next state, given W_i x + b_i and W_h h + b_h for the gates i, f, g, o."""
    i, f, g, o = (gates + recurrent).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """Next state, given W_i x + b_i and W_h h + b_h for the gates r, z, n."""
    (r, z, n), (hr, hz, hn) = gates.chunk(3, -1), recurrent.chunk(3, -1)
    z = (z + hz).sigmoid()
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return (n + z * (state[0] - n),)


def tanh(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """Next state of a plain recurrent layer."""
    return ((gates + recurrent).tanh(),)


def relu(gates: Tensor, recurrent: Tensor, state: State) -> State:
    """Next state of a plain recurrent layer with ReLU units."""
    return ((gates + recurrent).relu(),)


_CELLS = {"LSTM": lstm, "GRU": gru, "RNN_TANH": tanh, "RNN_RELU": relu}


class _Recurrent(Unfused, nn.RNNBase):
    """Layers of `nn.RNNBase`; children "ih_l0", "hh_l0" (and "hr_l0") for each layer and direction."""

    @override
    def projections(self) -> Iterable[tuple[str, str, str | None]]:
        for suffix in self._suffixes():
            for kind in ("ih", "hh"):
                yield f"{kind}{suffix}", f"weight_{kind}{suffix}", f"bias_{kind}{suffix}" if self.bias else None
            if self.proj_size:
                yield f"hr{suffix}", f"weight_hr{suffix}", None

    def _suffixes(self) -> list[str]:
        ends = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in ends]

    @override
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Output and last states, as the plain layer gives them."""
        self.link()
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"{self.plain.__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )
        alone = input.dim() == 2
        x = input.unsqueeze(0) if alone else input if self.batch_first else input.transpose(0, 1)
        given = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
        if alone and given is not None:
            given = tuple(one.unsqueeze(1) for one in given)
        y, last = self._run(x, given, None)
        if alone:
            return y.squeeze(0), self._given(tuple(one.squeeze(1) for one in last))
        return (y if self.batch_first else y.transpose(0, 1)), self._given(last)

    def _packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        # Sequences stay in their order of falling lengths until the end.
        x, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes), batch_first=True)
        given = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
        if given is not None and packed.sorted_indices is not None:
            given = tuple(one.index_select(1, packed.sorted_indices) for one in given)
        steps = torch.arange(x.shape[1], device=x.device)
        y, last = self._run(x, given, steps < lengths.to(x.device)[:, None])
        if packed.unsorted_indices is not None:
            last = tuple(one.index_select(1, packed.unsorted_indices) for one in last)
        data = pack_padded_sequence(y, lengths, batch_first=True).data
        again = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return again, self._given(last)

    def _given(self, last: State) -> Any:
        return last if self.mode == "LSTM" else last[0]

    def _run(self, x: Tensor, hx: State | None, there: Tensor | None) -> tuple[Tensor, State]:
        """Outputs [N, T, units] and last states [layers, N, units] of inputs [N, T, features].

        Args:
            there: [N, T], which steps a sequence has; None: all.
        """
        sizes = (self.proj_size or self.hidden_size, *([self.hidden_size] if self.mode == "LSTM" else []))
        suffixes, lasts = self._suffixes(), []
        directions = 2 if self.bidirectional else 1
        start = tuple(x.new_zeros(len(x), size) for size in sizes)
        for layer in range(self.num_layers):
            outputs = []
            for number in range(layer * directions, (layer + 1) * directions):
                state = start if hx is None else tuple(one[number] for one in hx)
                y, state = self._direction(x, state, suffixes[number], there, backward=number % directions == 1)
                outputs.append(y)
                lasts.append(state)
            x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, tuple(torch.stack(one) for one in zip(*lasts, strict=True))

    def _direction(
        self, x: Tensor, state: State, suffix: str, there: Tensor | None, *, backward: bool
    ) -> tuple[Tensor, State]:
        maps, cell = self._modules, _CELLS[self.mode]
        ih, hh, hr = maps[f"ih{suffix}"], maps[f"hh{suffix}"], maps.get(f"hr{suffix}")
        assert ih is not None
        assert hh is not None
        gates = ih(x)
        steps, outputs = range(x.shape[1]), []
        for t in reversed(steps) if backward else steps:
            new = cell(gates[:, t], hh(state[0]), state)
            if hr is not None:
                new = (hr(new[0]), *new[1:])
            if there is not None:
                new = tuple(torch.where(there[:, t, None], a, b) for a, b in zip(new, state, strict=True))
            state = new
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs, 1), state


@unfuses
class UnfusedLSTM(_Recurrent, nn.LSTM):
    """`nn.LSTM`, step by step."""

    plain = nn.LSTM


@unfuses
class UnfusedGRU(_Recurrent, nn.GRU):
    """`nn.GRU`, step by step."""

    plain = nn.GRU


@unfuses
class UnfusedRNN(_Recurrent, nn.RNN):
    """`nn.RNN`, step by step."""

    plain = nn.RNN


class _Cell(Unfused, nn.RNNCellBase):
    """One step; children "ih" and "hh"."""

    ih: Projection
    hh: Projection

    @override
    def projections(self) -> Iterable[tuple[str, str, str | None]]:
        return [(kind, f"weight_{kind}", f"bias_{kind}" if self.bias else None) for kind in ("ih", "hh")]

    def _step(self, cell: Any, input: Tensor, hx: Any) -> State:
        self.link()
        alone = input.dim() == 1
        given = hx if isinstance(hx, tuple) else (hx,)
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            given = (zeros, zeros)
        x, *state = (one.unsqueeze(0) if alone else one for one in (input, *given))
        new = cell(self.ih(x), self.hh(state[0]), tuple(state))
        return tuple(one.squeeze(0) for one in new) if alone else new


@unfuses
class UnfusedLSTMCell(_Cell, nn.LSTMCell):
    """`nn.LSTMCell` of two linear maps."""

    plain = nn.LSTMCell

    @override
    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> State:
        """The next (h, c)."""
        return self._step(lstm, input, hx)


@unfuses
class UnfusedGRUCell(_Cell, nn.GRUCell):
    """`nn.GRUCell` of two linear maps."""

    plain = nn.GRUCell

    @override
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h."""
        return self._step(gru, input, hx)[0]


@unfuses
class UnfusedRNNCell(_Cell, nn.RNNCell):
    """`nn.RNNCell` of two linear maps."""

    plain = nn.RNNCell

    @override
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next h."""
        return self._step(tanh if self.nonlinearity == "tanh" else relu, input, hx)[0]
