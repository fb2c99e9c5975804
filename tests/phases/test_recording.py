"""What is kept of the last pass, and when it is let go."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from comparison import equal
from networks import ResidualNet
from phases.common import X, Y, feedback, learn, weights


class Shared(nn.Module):
    """One layer used twice, on [N, T, F], in a model that takes a dict of inputs and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer, self.head = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, ids, scale):
        h = self.token(ids) * scale
        return Output(self.head(torch.tanh(self.layer(torch.tanh(self.layer(h)))).mean(1)), h)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize("rule", ["wm", "np", "sg", "reinforce"])
def test_layers_used_twice_inputs_by_name_and_structured_outputs(rule):
    torch.manual_seed(0)
    net = Shared().double()
    inputs = {"ids": torch.randint(7, (6, 4)), "scale": torch.tensor(1.5, dtype=torch.float64)}
    learner = apical.attach(net, rule, example_input=inputs, output="logits")
    before = feedback(learner)
    for _ in range(3):
        cross_entropy(net(**inputs).logits, Y[:6]).mean().backward()
        learner.adapt(inputs, Y[:6], cross_entropy)
    assert all(not torch.equal(value, before[name]) for name, value in feedback(learner).items())
    assert net.layer.weight.grad is not None


class Branches(nn.Module):
    """A layer besides the main road, taken while training, by batches with a positive first value, or never."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.aux, self.way = nn.Linear(72, 8), nn.Linear(8, 3), nn.Linear(8, 3), way

    def forward(self, x):
        h = torch.tanh(self.a(x.flatten(1)))
        taken = {"training": self.training, "routed": bool(x.flatten()[0] > 0), "never": False}[self.way]
        return self.b(h) + self.aux(h) if taken else self.b(h)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("way", ["training", "routed", "never"])
@pytest.mark.parametrize("rule", ["fa", "kp", "wm", "np", "np-ridge", "sg", "reinforce"])
def test_layers_that_not_every_pass_reaches_learn_when_one_does(rule, way, shown):
    net = Branches(way)
    chosen = {"": apical.rule("np", solver="ridge")} if rule == "np-ridge" else rule
    learner = apical.attach(net, chosen, example_input=-X.abs() if shown else None)
    before = feedback(learner)
    learn(net, learner, x=-X.abs())
    assert (net.aux.weight.grad is None) == (way != "training")
    assert torch.equal(learner.synapses["aux"].weight, net.aux.weight)
    reached = {"training": {"b", "aux"}, "routed": {"b"}, "never": {"b"}}[way]
    for _ in range(2):
        if rule in ("wm", "np", "np-ridge", "sg"):
            assert {n for n, value in feedback(learner).items() if not torch.equal(value, before[n])} == reached
        before = feedback(learner)
        learn(net, learner, x=X.abs())
        reached = {"b"} if way == "never" else {"b", "aux"}
    assert (net.aux.weight.grad is None) == (way == "never")
    apical.alignment(learner, X, Y, cross_entropy), apical.audit(learner, X, Y, cross_entropy)


@pytest.mark.parametrize("rule", ["wm", "np"])
def test_a_resumed_run_knows_which_layers_have_been_reached(rule):
    """A mirror needs no data: once it has met a layer, it goes on there, whatever the batch."""
    net = Branches("routed")
    learner = apical.attach(net, rule, generator=torch.Generator().manual_seed(1))
    learn(net, learner, x=X.abs())
    file = io.BytesIO()
    torch.save((net.state_dict(), learner.state_dict()), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = Branches("routed")
    resumed = apical.attach(again, rule)
    again.load_state_dict(state[0]), resumed.load_state_dict(state[1])
    before = feedback(resumed)["aux"]
    learn(net, learner, x=-X.abs()), learn(again, resumed, x=-X.abs())
    equal(feedback(resumed), feedback(learner))
    assert torch.equal(feedback(resumed)["aux"], before) == (rule == "np")


@pytest.mark.parametrize("optimizer", ["torch", "local"])
@pytest.mark.parametrize("pair", [("np", "kp"), ("np-direct", "kp-direct")])
def test_nothing_that_an_optimizer_holds_moves_during_warmup(pair, optimizer):
    net = ResidualNet().double()
    learner = apical.attach(net, {"": apical.rule(pair[0], warmup=2), "head": pair[1]}, example_input=X.double())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    moves = (
        apical.LocalSGD(learner, **options) if optimizer == "local" else torch.optim.SGD(net.parameters(), **options)
    )
    before = {name: value.clone() for name, value in weights(net).items()}
    for step in range(3):
        assert "head.feedback" in before
        learn(net, learner, x=X.double(), optimizer=moves)
        assert [name for name, value in weights(net).items() if torch.equal(value, before[name]) != (step < 2)] == []


@pytest.mark.parametrize("rule", ["sg", "np"])
def test_a_gradient_that_somebody_has_kept_stays_as_it_was(rule):
    """The regression writes its residual to the signal's own memory, but only where nobody else holds it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    learner = apical.attach(net, rule)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    kept = []

    def keep(module, args, h):
        if h.requires_grad:
            h.register_hook(kept.append)

    for layer in (net[1], net[3]):
        layer.register_forward_hook(keep)
    apical.losses.cross_entropy(net(x), y).mean().backward()
    before = [gradient.clone() for gradient in kept]
    assert len(before) == 2
    learner.adapt(x, y, apical.losses.cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(kept[:2], before, strict=True))
