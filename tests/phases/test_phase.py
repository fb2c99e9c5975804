"""Rules with a phase of their own, under everything a training loop does."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import apical
from apical.losses import cross_entropy
from comparison import equal
from learning import spread
from networks import ResidualNet
from phases.common import RULES, X, Y, attach, everything, feedback, learn


@pytest.mark.parametrize("rule", RULES)
def test_training_lowers_the_loss(rule):
    net = ResidualNet()
    learner = attach(net, rule)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    before = float(cross_entropy(net.eval()(X), Y).mean().detach())
    learn(net.train(), learner, 40, optimizer=optimizer)
    assert float(cross_entropy(net.eval()(X), Y).mean().detach()) < 0.8 * before


@pytest.mark.parametrize(
    ("rule", "how", "moment"), spread(RULES, ["deepcopy", "pickle"], ["before", "after backward", "after adapt"])
)
def test_copies_go_on_alike_and_apart(rule, moment, how):
    net = ResidualNet()
    learner = attach(net, rule)
    learn(net, learner)
    net.zero_grad()
    if moment != "before":
        cross_entropy(net(X), Y).mean().backward()
    if moment == "after adapt":
        learner.adapt(X, Y, cross_entropy)
    other = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    its = apical.learner_of(other)
    for model, own in ((net, learner), (other, its)):
        torch.manual_seed(7)
        model.zero_grad()
        learn(model, own)
    equal(everything(net, learner), everything(other, its))
    untouched = feedback(its)
    learn(net, learner)
    equal(untouched, feedback(its))


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_goes_on_bit_identically(rule):
    net = ResidualNet()
    learner = attach(net, rule)
    learn(net, learner)
    file = io.BytesIO()
    torch.save((net.state_dict(), learner.state_dict()), file)
    file.seek(0)
    other = ResidualNet(3)
    its = attach(other, rule, seed=9)
    model_state, own_state = torch.load(file, weights_only=True)
    other.load_state_dict(model_state)
    its.load_state_dict(own_state)
    for model, own in ((net, learner), (other, its)):
        torch.manual_seed(7)
        model.zero_grad()
        learn(model, own, 2)
    equal(everything(net, learner), everything(other, its))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_a_batch_is_kept_after_its_phase_and_detach_leaves_the_plain_model(rule):
    net = ResidualNet()
    plain = {name: type(module) for name, module in net.named_modules()}
    keys = set(net.state_dict())
    learner = attach(net, rule)
    x = X.clone()
    seen = weakref.ref(x)
    learn(net, learner, x=x)
    del x
    gc.collect()
    assert seen() is None
    learner.detach()
    assert {name: type(module) for name, module in net.named_modules()} == plain
    assert set(net.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any("feedback" in vars(m) or m._buffers.get("feedback") is not None for m in net.modules())


@pytest.mark.parametrize("rule", RULES)
def test_measuring_between_steps_leaves_no_trace(rule):
    def run(measure):
        net = ResidualNet()
        learner = attach(net, rule)
        torch.manual_seed(2)
        for _ in range(2):
            cross_entropy(net(X), Y).mean().backward()
            if measure:
                apical.alignment(learner, X, Y, cross_entropy)
                apical.audit(learner, X, Y, cross_entropy)
            learner.adapt(X, Y, cross_entropy)
        return everything(net, learner)

    equal(run(True), run(False))


def test_noisy_activations_and_inputs():
    net = ResidualNet()
    clean = net.eval()(X)
    noise = apical.NoisyActivations(net, 0.5)
    learner = attach(net, "np")
    assert torch.equal(net(X), clean)
    assert not torch.equal(net.train()(X), net(X))
    learn(net, learner, 3)
    noise.remove()
    learner.detach()
    assert not any(m._forward_pre_hooks for m in net.modules())
    noisy = apical.NoisyInput(2.0)
    assert torch.equal(noisy.eval()(X), X)
    assert float((noisy.train()(X) - X).std()) == pytest.approx(2.0, rel=0.15)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="sd must be a positive number"):
            apical.NoisyInput(wrong)
        with pytest.raises(ValueError, match="sd must be a positive number"):
            apical.NoisyActivations(net, wrong)


@pytest.mark.parametrize("rule", RULES)
def test_the_audit_sees_through_the_phase(rule):
    net = ResidualNet()
    report = apical.audit(attach(net, rule), X, Y, cross_entropy)
    synapses = {name: report.transported[name] for name in ("stem", "block.conv1", "block.conv2", "head")}
    assert set(synapses.values()) == ({"nothing", "weights"} if rule.startswith("sg") else {"nothing"})
    scalar = rule.startswith(("np", "reinforce")) or rule == "mixed"
    assert bool(report.broadcast) == scalar
    assert ("one scalar per sample" in str(report)) == scalar


@dataclass(frozen=True)
class Thief(apical.Mirror):
    """A mirror that looks at the weights of one layer."""

    name: ClassVar[str] = "thief"
    victim: str = "head"

    def adapt(self, phase):
        super().adapt(phase)
        for site in phase.sites:
            if site.name == self.victim:
                site.feedback.add_(site.owner.weight.detach(), alpha=0.01)


@pytest.mark.parametrize("victim", ["block.conv1", "block.conv2", "head"])
def test_the_audit_catches_a_transport_inside_a_phase(victim):
    net = ResidualNet()
    learner = apical.attach(net, apical.Rule("layer-wise", Thief(victim=victim)), example_input=X[:2])
    report = apical.audit(learner, X, Y, cross_entropy)
    assert [name for name, kind in report.transported.items() if kind == "weights"] == [victim]
