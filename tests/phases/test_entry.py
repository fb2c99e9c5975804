"""Loops that go through a model by another way than its forward, by which alone a phase can repeat a pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from networks import dynamo

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (16,), generator=torch.Generator().manual_seed(6))
REPEATS = ("np", "sg", "reinforce", {"": "wm", "head": "np"})


class Contrast(nn.Module):
    """A forward for use, and a method with a projection, and one that only encodes, for training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head, self.project = nn.Linear(6, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def step(self, x):
        return self.project(torch.tanh(self.head(self.body(x))))

    def encode(self, x):
        return self.body(x)


WAYS = {
    "another method": lambda net: net.step(X),
    "forward by name": lambda net: net.forward(X),
    "the parts": lambda net: net.head(net.body(X)),
    "one part": lambda net: net.encode(X)[:, :3],
}


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", REPEATS)
def test_a_phase_that_repeats_the_pass_refuses_another_way(rule, way, shown):
    net = Contrast()
    learner = apical.attach(net, rule, example_input=X if shown else None)
    start = copy.deepcopy(net.state_dict())
    for _ in range(2):
        net.zero_grad()
        cross_entropy(WAYS[way](net), Y).mean().backward()
        if rule == REPEATS[-1] and way == "one part":
            learner.adapt(X, Y, cross_entropy)  # The head's feedback alone needs the pass, and it has not learned.
            return
        with pytest.raises(RuntimeError, match=r"no part of a forward pass of the model(.|\n)*call the model itself"):
            learner.adapt(X, Y, cross_entropy)
    # In the mixture, the mirrors have come first.
    assert rule == REPEATS[-1] or all(torch.equal(value, start[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shown", [True, False])
def test_mirrors_learn_wherever_the_loop_has_gone(way, shown):
    net = Contrast()
    learner = apical.attach(net, "wm", example_input=X if shown else None)
    start = {name: synapse.feedback.clone() for name, synapse in learner.synapses.items() if synapse.sends_back}
    cross_entropy(WAYS[way](net), Y).mean().backward()
    learner.adapt(X, Y, cross_entropy)
    learned = {name for name, value in start.items() if not torch.equal(value, learner.synapses[name].feedback)}
    # Those of its forward in any case: a mirror needs no data.
    assert learned - {"body.0"} == {"body.2", "head"} | ({"project"} if way == "another method" else set())


def test_mirrors_go_on_where_batches_of_another_shape_go_another_way():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.o, self.project = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.o(torch.tanh(self.i(x))).mean(1)

        def step(self, x):
            return self.project(self.forward(x))

    net = Sequences()
    learner = apical.attach(net, "wm")
    for length in (4, 5):
        x, start = torch.randn(16, length, 8), net.project.feedback.clone()
        cross_entropy(net.step(x), Y).mean().backward()
        learner.adapt(x, Y, cross_entropy)
        assert not torch.equal(start, net.project.feedback)


@pytest.mark.parametrize("rule", REPEATS[:3])
def test_what_is_no_part_of_learning_is_not_refused(rule):
    """Calls of parts without a backward, in a step before, or beside a pass that goes through the same layers."""
    net = Contrast()
    learner = apical.attach(net, rule, example_input=X)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    cross_entropy(net.step(X), Y).mean().backward()
    optimizer.step(), optimizer.zero_grad()
    for _ in range(2):
        net.encode(X).sum(), net.step(X)
        with torch.no_grad():
            net.encode(X)
        (cross_entropy(net(X), Y).mean() + 0 * net.encode(X).sum()).backward()
        learner.adapt(X, Y, cross_entropy)
        optimizer.step(), optimizer.zero_grad()


@pytest.mark.parametrize("rule", REPEATS[:3])
def test_a_layer_that_only_the_other_way_reaches_is_named(rule):
    net = Contrast()
    learner = apical.attach(net, rule, example_input=X)
    (cross_entropy(net(X), Y) + cross_entropy(net.step(X), Y)).mean().backward()
    with pytest.raises(RuntimeError, match=r"^'project' learned from a call"):
        learner.adapt(X, Y, cross_entropy)


def test_measuring_asks_for_the_models_own_pass_whatever_the_loop_did():
    net = Contrast()
    learner = apical.attach(net, "np", example_input=X)
    cross_entropy(net.step(X), Y).mean().backward()
    apical.audit(learner, X, Y, cross_entropy), apical.alignment(learner, X, Y, cross_entropy)
    with pytest.raises(RuntimeError, match="'project'"):
        learner.adapt(X, Y, cross_entropy)


def test_copies_of_a_model_notice_it_too():
    net = copy.deepcopy(apical.attach(Contrast(), "np", example_input=X).model)
    learner = apical.learner_of(net)
    cross_entropy(net(X), Y).mean().backward()
    learner.adapt(X, Y, cross_entropy)
    net.zero_grad()
    cross_entropy(net.step(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match="'project'"):
        learner.adapt(X, Y, cross_entropy)


@dynamo
@pytest.mark.parametrize("rule", [pytest.param("wm", marks=pytest.mark.slow), "np"])
def test_compiled_models_are_no_other_way(rule):
    torch.compiler.reset()
    net = Contrast()
    learner = apical.attach(net, rule, example_input=X)
    start = net.head.feedback.clone()
    for call in (torch.compile(net, backend="eager"), net, torch.compile(net, backend="eager")):
        cross_entropy(call(X), Y).mean().backward()
        learner.adapt(X, Y, cross_entropy)
    assert not torch.equal(start, net.head.feedback)
