"""An audit of models to which nothing is attached: rules made by hand, in the backward of their own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy
from networks import X, Y, plain_chain


class Teaching(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, feedback):
        ctx.save_for_backward(x, feedback)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, delta):
        x, feedback = ctx.saved_tensors
        product = delta.t() @ x
        return delta @ feedback, product, product if ctx.needs_input_grad[2] else None


class Layer(nn.Module):
    """A linear layer, with or without its activation function, whose backward reads what `how` says."""

    def __init__(self, inputs: int, outputs: int, how: str, active: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / inputs**0.5)
        self.B = nn.Parameter(torch.randn(outputs, inputs), requires_grad=how == "Kolen-Pollack")
        self.how, self.active = how, active

    def forward(self, x):
        weight = self.weight.detach()
        feedback = {"the weights": weight, "a copy": weight.clone(), "signs": weight.sign()}.get(self.how, self.B)
        h = F.linear(x, self.weight) if self.how == "autograd" else Teaching.apply(x, self.weight, feedback)
        return h.tanh() if self.active else h


HOW = {
    "fixed": "nothing",
    "Kolen-Pollack": "nothing",
    "the weights": "weights",
    "a copy": "weights",
    "signs": "signs",
    "autograd": "weights",
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("active", [False, True])
def test_layers_by_hand_are_judged_by_what_their_backward_reads(how, active):
    torch.manual_seed(0)
    net = nn.Sequential(
        Layer(4, 9, how, active), nn.BatchNorm1d(9), nn.Tanh(), Layer(9, 9, how, active), Layer(9, 3, "fixed", False)
    )
    before = [p.clone() for p in net.parameters()]
    report = apical.audit(net, X, Y, cross_entropy)
    assert report.transported == {
        "0": "nothing",
        "1": "normalization scale",
        "3": HOW[how],
        "4": "nothing",
    }
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())


class ByHook(nn.Sequential):
    """A plain network whose hooks put another signal in place of backpropagation's."""

    def __init__(self) -> None:
        super().__init__(*plain_chain())
        for layer in (self[2], self[4]):
            feedback = torch.randn(layer.weight.shape)
            layer.register_full_backward_hook(lambda module, into, out, B=feedback: (out[0] @ B,))


class DirectByHand(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(*plain_chain())
        self.B = torch.randn(3, 6)

    def forward(self, x):
        first, _, second, _, last = self
        h = torch.tanh(first(x))
        k = torch.tanh(second(h.detach()))
        out = last(k.detach())
        return out + sum((one @ self.B.t()) - (one @ self.B.t()).detach() for one in (h, k))


@pytest.mark.parametrize("make", [ByHook, DirectByHand])
def test_hooks_and_graphs_that_teach_by_other_weights_transport_nothing(make):
    torch.manual_seed(0)
    assert apical.audit(make(), X, Y, cross_entropy).summary == "nothing"


def test_a_plain_model_transports_its_weights():
    report = apical.audit(plain_chain(), X, Y, cross_entropy)
    assert report.transported == {"0": "nothing", "2": "weights", "4": "weights"}
    assert str(report).startswith("rule '(the model's own)' transports: weights\n")


def test_a_model_that_does_not_learn_by_its_backward_is_refused():
    with pytest.raises(ValueError, match=r"no parameter of this Sequential gets a gradient .* loss\.backward\(\)"):
        apical.audit(plain_chain().requires_grad_(False), X, Y, cross_entropy)


@pytest.mark.parametrize("inside", [False, True])
def test_an_attached_model_is_asked_for_its_learner(inside):
    net = plain_chain()
    apical.attach(net, "fa")
    with pytest.raises(TypeError, match=r"got Sequential; apical\.learner_of\(model\)"):
        apical.audit(nn.Sequential(net) if inside else net, X, Y, cross_entropy)


@pytest.mark.parametrize("other", [None, {}, nn.Linear, "fa"])
def test_other_things_are_refused(other):
    with pytest.raises(TypeError, match=r"learner must be what apical\.attach returns"):
        apical.audit(other, X, Y, cross_entropy)
