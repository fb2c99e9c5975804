"""The clean pass: the loop's own where it can be used, else one made for the phase."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from comparison import close, equal
from learning import spread
from networks import ResidualNet, dynamo, exactly
from phases.common import RULES, X, Y, attach, everything, feedback, learn, weights


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["copy of the batch", "checkpointed", "all frozen", "auxiliary loss", "no backward"])
def test_a_clean_pass_of_its_own_gives_the_same_phase(rule, way):
    if rule == "reinforce" and way in ("all frozen", "auxiliary loss", "no backward"):
        pytest.skip("learns from the loop's own loss")
    if rule == "mirror-direct" and way == "checkpointed":
        pytest.skip("PyTorch updates running statistics again when it recomputes a block, and this mirror reads them")

    def run(odd):
        net = ResidualNet().double()
        net.drop.p = 0.0  # Masks of two passes would differ.
        learner = attach(net, rule, X.double())
        x = X.double()
        net.checkpointed = odd and way == "checkpointed"
        if odd and way == "all frozen":
            net.requires_grad_(False)
            net(x)
        else:
            output = net(x)
            losses = cross_entropy(output, Y)
            if odd and way == "auxiliary loss":
                (losses.mean() + output.square().mean()).backward()
            elif not (odd and way == "no backward"):
                losses.mean().backward()
        learner.adapt(x.clone() if odd and way == "copy of the batch" else x, Y, cross_entropy)
        return feedback(learner)

    close(run(True), run(False), 1e-9)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "reinforce"])
@pytest.mark.parametrize("way", ["after the step", "with another batch", "both"])
def test_a_phase_that_comes_late_or_with_another_batch_is_that_batchs_under_the_weights_as_they_are(rule, way):
    """As if the loop had just backpropagated it: nothing of the pass before is mixed in."""

    def run(odd):
        net, x = ResidualNet().double(), X.double()
        net.drop.p = 0.0
        learner = attach(net, rule, x)
        optimizer = torch.optim.SGD(net.parameters(), 1.0)
        cross_entropy(net(x), Y).mean().backward()
        if way != "with another batch":
            optimizer.step()
        other, targets = (x, Y) if way == "after the step" else (2 * x.flip(0), Y.roll(1))
        optimizer.zero_grad()
        with torch.set_grad_enabled(not odd):
            losses = cross_entropy(net(other), targets)
        if not odd:
            losses.mean().backward()
        before = feedback(learner)
        learner.adapt(other, targets, cross_entropy)
        return {name: tensor - before[name] for name, tensor in feedback(learner).items()}

    mine, its = run(True), run(False)
    assert any(bool(change.any()) for change in its.values())
    close(mine, its, 1e-8)


@dynamo
@pytest.mark.parametrize(
    ("way", "reduce"), spread(["copy of the batch", "compiled", "compiled, with dropout"], ["mean", "sum"])
)
def test_reinforce_scales_with_the_loops_loss_in_a_clean_pass_of_its_own(way, reduce):
    grads = []
    for odd in (False, True):
        torch.compiler.reset()
        net = ResidualNet().double()
        net.drop.p = 0.25 if "dropout" in way else 0.0
        learner = attach(net, "reinforce", X.double())
        call = torch.compile(net, backend="eager") if odd and "compiled" in way else net
        torch.manual_seed(1)
        x = X.double()
        getattr(cross_entropy(call(x), Y), reduce)().backward()
        learner.adapt(x.clone() if odd else x, Y, cross_entropy)
        grads.append(net.stem.weight.grad)
    ratio = float(grads[1].norm() / grads[0].norm())
    assert 0.3 < ratio < 3 if "dropout" in way else abs(ratio - 1) < 1e-6


@pytest.mark.parametrize("way", ["peek before", "peek after", "by name"])
@pytest.mark.parametrize("how", ["torch", "local", "accumulated"])
def test_reinforce_keeps_to_the_loops_loss_whatever_else_the_loop_computes(how, way):
    def run(odd):
        net = ResidualNet().double()
        net.drop.p = 0.0 if way == "by name" else 0.25  # A pass of its own has masks of its own.
        learner = attach(net, "reinforce", X.double())
        optimizer = apical.LocalSGD(learner, 0.1) if how == "local" else torch.optim.SGD(net.parameters(), 0.1)
        x = X.double()
        for step in range(3):
            torch.manual_seed(step)
            output = net(x)
            if odd and way == "peek before":
                net(x).argmax(1)
            cross_entropy(output, Y).mean().backward()
            if odd and way == "peek after":
                net(x).argmax(1)
            learner.adapt({"x": x} if odd and way == "by name" else x, Y, cross_entropy)
            if how != "accumulated":
                optimizer.step()
                optimizer.zero_grad()
        optimizer.step()
        return weights(net)

    close(run(True), run(False), 1e-9)


@dynamo
def test_reinforce_says_when_nothing_tells_the_scale_of_the_loops_loss():
    net = ResidualNet()
    learner = attach(net, "reinforce")
    with pytest.raises(RuntimeError, match=r"no backward pass.*call adapt between backward"):
        learner.adapt(X, Y, cross_entropy)
    compiled = torch.compile(net, backend="eager")
    for zero in (lambda: net.zero_grad(), lambda: net.zero_grad(set_to_none=False)):
        learn(net, learner, call=compiled)
        zero()
    learn(net, learner, call=compiled)
    before = everything(net, learner)
    cross_entropy(compiled(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match=r"'stem.weight' still has the gradient of an earlier batch.*zero_grad"):
        learner.adapt(X, Y, cross_entropy)
    assert torch.equal(net.stem.weight.grad, before["stem.weight.grad"])


@pytest.mark.parametrize("rule", ["np", "reinforce"])
def test_a_pass_from_before_a_step_is_not_compared_with_one_after_it(rule):
    net = ResidualNet().double()
    net.drop.p = 0.0
    learner = attach(net, rule, X.double())
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    cross_entropy(net(X.double()), Y).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    other = copy.deepcopy(net)
    its = apical.learner_of(other)
    if rule == "reinforce":
        with pytest.raises(RuntimeError, match="no backward pass"):
            learner.adapt(X.double(), Y, cross_entropy)
        return
    for own in (learner, its):
        own.adapt(X.double(), Y, cross_entropy)
    equal(feedback(learner), feedback(its))


class Bypass(nn.Module):
    """Skips lead around both inner synapses to the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.a, self.o = nn.Linear(72, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x.flatten(1))))
        h = h + self.a(torch.sigmoid(h))
        return h + self.o(torch.sigmoid(h))


@pytest.mark.parametrize("head", ["reinforce", "bp", "dfa"])
@pytest.mark.parametrize("optimizer", ["torch", "local"])
@pytest.mark.parametrize("own", [False, True], ids=["the loop's pass", "a pass of its own"])
def test_reinforce_adds_to_the_error_that_a_skip_brings_around_a_cut(head, optimizer, own, monkeypatch):
    """With exact estimates both together are backpropagation."""
    monkeypatch.setattr("apical.phases.phase.estimates", exactly)
    x, plain, net = X.double(), Bypass(), Bypass()
    learner = apical.attach(net, {"": "reinforce", "o": head}, example_input=x)
    if head == "dfa":
        learner.synapses["o"].feedback = net.o.weight.detach()
    moves = apical.LocalSGD(learner, 1.0) if optimizer == "local" else torch.optim.SGD(net.parameters(), 1.0)
    cross_entropy(net(x), Y).mean().backward()
    learner.adapt({"x": x} if own else x, Y, cross_entropy)
    moves.step()
    cross_entropy(plain(x), Y).mean().backward()
    torch.optim.SGD(plain.parameters(), 1.0).step()
    close(weights(net), weights(plain), 1e-9)


def test_reinforce_refuses_another_batch_than_the_loops():
    net = ResidualNet()
    learner = attach(net, "reinforce")
    cross_entropy(net(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match="batch of the last backward pass"):
        learner.adapt(-X, Y.flip(0), cross_entropy)


@pytest.mark.parametrize("way", ["like it", "one sample", "keywords"])
def test_reinforce_refuses_another_batch_even_if_its_errors_are_alike(way):
    net = ResidualNet()
    learner = attach(net, "reinforce")
    other = X + 1e-3 * torch.randn(X.shape) if way == "like it" else X.roll(1, 0)
    if way == "one sample":
        other = X.clone()
        other[3] += 0.1
    cross_entropy(net(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match=r"another batch .*batch of the last backward pass"):
        learner.adapt({"x": other} if way == "keywords" else other, Y, cross_entropy)


@pytest.mark.parametrize("drops", [True, False])
@pytest.mark.parametrize("kind", ["torch", "decayed"])
def test_reinforce_refuses_to_come_after_the_step(kind, drops):
    net = ResidualNet()
    learner = attach(net, "reinforce")
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1 if kind == "decayed" else 0)
    cross_entropy(net(X), Y).mean().backward()
    optimizer.step()
    if drops:
        optimizer.zero_grad()
    before = everything(net, learner)
    with pytest.raises(RuntimeError, match=r"no backward pass since the weights moved.*between backward\(\)"):
        learner.adapt(X, Y, cross_entropy)
    equal(everything(net, learner), before)


def test_reinforce_says_that_the_loss_is_another_one():
    net = ResidualNet()
    learner = attach(net, "reinforce")
    output = net(X)
    (cross_entropy(output, Y).mean() + output.square().mean()).backward()
    with pytest.raises(RuntimeError, match="criterion"):
        learner.adapt(X, Y, cross_entropy)
