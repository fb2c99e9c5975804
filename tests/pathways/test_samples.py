"""Direct signals want samples that keep to themselves, in the first dimension."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import apical
from attaching.refusals import refused
from networks import seed
from phases.test_coupling import AcrossSamples, Graph

X = torch.randn(8, 5, generator=seed(1))
SEQUENCES = torch.randn(8, 4, 5, generator=seed(2))
DIRECT = ("dfa", "kp-direct", "np-direct")
WHOLE = tuple(apical.rule(name, per_position=False) for name in DIRECT)
"""Errors of a whole sample, where outputs at several positions could each have its own."""


class Positions(nn.Module):
    """Attention over positions [N, T, F], or [T, N, F] with `first`; its branch may start from zero."""

    def __init__(self, first: bool = False, zero: bool = False, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o, self.c = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.first, self.causal = first, causal
        if zero:
            nn.init.zeros_(self.o.weight), nn.init.zeros_(self.o.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        q = self.b(h)
        q, v = (t.transpose(0, 1) if self.first else t for t in (q, q))
        scores = q @ v.mT
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        mixed = torch.softmax(scores, -1) @ v
        return self.c(h + self.o(mixed.transpose(0, 1) if self.first else mixed))


def mlp(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), *between, nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("rule", [*WHOLE, {"": "fa", "o": WHOLE[0], "b": WHOLE[0]}])
@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_in_the_second_dimension_is_refused(rule, causal):
    says = ("batch in the first dimension", "x.transpose(0, 1)", "x.flatten(0, 1)")
    refused(Positions(first=True, causal=causal), rule, says=says, example_input=SEQUENCES)


@pytest.mark.parametrize("rule", [*WHOLE, "ifa"])
def test_positions_that_have_nothing_to_do_with_each_other_are_refused(rule):
    refused(mlp(), rule, says=("second dimension", "x.flatten(0, 1)"), example_input=SEQUENCES)
    apical.attach(mlp(), rule, example_input=SEQUENCES.flatten(0, 1))
    apical.attach(mlp(), "fa", example_input=SEQUENCES)
    apical.attach(mlp(), rule, example_input=SEQUENCES[:, :1])


def test_a_batch_in_the_second_dimension_at_blocks_is_refused():
    net = nn.Sequential(nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3))
    refused(net, WHOLE[0], says=("second dimension",), example_input=SEQUENCES, at=["0"])


@pytest.mark.parametrize("rule", DIRECT)
@pytest.mark.parametrize(
    ("make", "example"),
    [
        (Positions, SEQUENCES),
        (lambda: Positions(zero=True), SEQUENCES),
        (lambda: Positions(causal=True), SEQUENCES),
        (AcrossSamples, SEQUENCES),
        (lambda: mlp(nn.BatchNorm1d(6)), X),
        (lambda: mlp(nn.BatchNorm1d(6, track_running_stats=False)), X),
        (lambda: mlp(nn.LayerNorm(6)), X[:1]),
        (lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.Tanh(), nn.Conv1d(4, 4, 1)), SEQUENCES),
    ],
)
def test_usual_networks_pass_without_a_word(rule, make, example):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apical.attach(make(), rule, example_input=example)


@pytest.mark.parametrize("rule", DIRECT)
@pytest.mark.parametrize("make", [Graph, AcrossSamples])
def test_samples_that_depend_on_each_other_are_spoken_of(rule, make):
    with pytest.warns(UserWarning, match=r"move with activity of other samples.*'fa'"):
        apical.attach(make(), rule, example_input=X)
    apical.attach(make(), "np", example_input=X)
