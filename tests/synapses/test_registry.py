"""Layers of one's own, registered as synapses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.synapses import registry
from learning import attach, gradients
from networks import X, seed


class Scaled(nn.Linear):
    """Computes what nn.Linear does, with a helper that its model uses."""

    def norm(self) -> Tensor:
        return self.weight.detach().norm()


class Masked(nn.Linear):
    """A kind with its own map: y = x (W * mask)^T."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", (torch.rand(self.weight.shape, generator=seed(2)) < 0.5).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.mask, self.bias)


class MaskedSynapse(apical.Synapse, Masked):
    def transmit(self, x, weight, bias, geometry=()):
        return nn.functional.linear(x, weight * self.mask, bias)

    def feed_back(self, delta, feedback, shape, geometry=()):
        return delta @ (feedback * self.mask)

    def hebbian(self, x, delta, geometry=()):
        return delta.T @ x * self.mask


def test_a_registered_subclass_learns_and_comes_back(registered):
    registered(Scaled, apical.LinearSynapse)
    registered(Masked, MaskedSynapse)
    torch.manual_seed(0)
    plain = nn.Sequential(Scaled(4, 6), nn.Tanh(), Masked(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    expected = gradients(plain, X.double())
    for rule in ("bp", "kp"):
        model = copy.deepcopy(plain)
        learner = attach(model, rule)
        if rule == "kp":
            for synapse in learner.synapses.values():
                synapse.feedback = synapse.weight
        got = gradients(model, X.double())
        for name, g in expected.items():
            torch.testing.assert_close(got[name], g, rtol=1e-12, atol=1e-14)
        if rule == "kp":
            assert torch.equal(got["2.feedback"], got["2.weight"])
            assert not got["2.feedback"][model[2].mask == 0].any()
        with torch.no_grad():
            assert torch.equal(model(X.double()), plain(X.double()))
        learner.detach()
        assert [type(m) for m in model] == [type(m) for m in plain]


def test_a_registered_kind_may_have_its_bias_as_a_plain_none(registered):
    class Unbiased(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes, bias=False)
            del self.bias
            self.bias = None

    registered(Unbiased, apical.LinearSynapse)
    model = nn.Sequential(Unbiased(4, 6), nn.Tanh(), Unbiased(6, 3))
    expected = gradients(copy.deepcopy(model), X)
    attach(model, "bp")
    for name, g in gradients(model, X).items():
        torch.testing.assert_close(g, expected[name])


def test_methods_of_a_registered_subclass_stay_usable(registered):
    class ScaledSynapse(apical.LinearSynapse, Scaled):
        pass

    registered(Scaled, ScaledSynapse)
    model = nn.Sequential(Scaled(4, 6), nn.Tanh(), nn.Linear(6, 3))
    expected = model[0].norm()
    learner = attach(model, "fa")
    assert torch.equal(model[0].norm(), expected)
    assert isinstance(model[0], Scaled)
    learner.detach()
    assert type(model[0]) is Scaled


def test_register_synapse_refuses_what_cant_stand_in(registered):
    for module_type, kind, match in (
        (nn.Linear, apical.Conv2dSynapse, "Conv2dSynapse can't stand in for Linear"),
        ("Linear", apical.LinearSynapse, "module_type"),
        (nn.Linear, nn.Linear, "Synapse"),
        (nn.Linear, "LinearSynapse", "Synapse"),
    ):
        with pytest.raises(TypeError, match=match):
            registered(module_type, kind)
    assert registry.SYNAPSES[nn.Linear] is apical.LinearSynapse
