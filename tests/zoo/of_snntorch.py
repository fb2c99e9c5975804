"""Spiking networks of snnTorch."""

from __future__ import annotations

import torch
from torch import nn

from zoo.libraries import snntorch
from zoo.networks import Network, noise


class Spiking(nn.Module):
    """Spiking layers driven by a constant input; the output is the readout's mean potential."""

    def __init__(self, make, steps: int = 5) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.cells, self.steps = nn.ModuleList([make(), make()]), steps

    def forward(self, x):
        states = [None, None]
        total = 0
        for _ in range(self.steps):
            h = x
            for number, layer in enumerate((self.first, self.second)):
                cell = self.cells[number]
                given = cell.reset_mem() if states[number] is None else states[number]
                given = given if isinstance(given, tuple) else (given,)
                h, *state = cell(layer(h.to(x)), *given)
                states[number] = tuple(state)
            total = total + self.head(h.to(x))
        return total / self.steps


def leaky():
    return snntorch.Leaky(beta=torch.full((16,), 0.9), threshold=0.5, learn_beta=True, learn_threshold=True)


def synaptic():
    return snntorch.Synaptic(alpha=0.8, beta=0.9, threshold=0.5, learn_alpha=True, learn_beta=True)


def network(name: str, make, **options) -> Network:
    return Network(name, "snnTorch", lambda: Spiking(make), lambda: noise(4, 12) * 2, **options)


NETWORKS = [
    network("Leaky, decay and threshold learned", leaky),
    network("Synaptic, decays learned", synaptic),
    network("RLeaky, all to all", lambda: recurrent(True), dtype=torch.float32, tolerance=1e-5),
    network("RLeaky, one to one", lambda: recurrent(False)),
]


def recurrent(all_to_all: bool):
    options = {"linear_features": 16} if all_to_all else {"V": 0.5}
    return snntorch.RLeaky(beta=0.9, threshold=0.5, all_to_all=all_to_all, learn_recurrent=True, **options)
