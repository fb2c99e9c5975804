"""What the text says beside its tables: variants of DFA, fixed layers, and starts of very deep networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import apical
from apical.losses import binary_cross_entropy
from apical.papers import Curve, Record
from apical.papers.experiment import Task
from apical.papers.nokland2016.discussion import ABOVE_FIXED, BEFORE, DISCUSSION, SHARED, TEXT_DEPTH


@pytest.fixture
def network(digits, tmp_path):
    """network(condition) -> the network of seed 0, before learning."""
    return lambda condition: DISCUSSION.network(Task(condition, (0,), 1.0, {}, tmp_path, digits), 0)


def test_one_feedback_is_that_of_all_hidden_layers(network):
    _, first, *others = apical.learner_of(network(SHARED)).synapses.values()
    assert first.feedback is not None
    assert all(torch.equal(one.feedback, first.feedback) for one in others)


def test_an_error_before_the_nonlinearity_comes_without_its_derivative(network, digits):
    net = network(BEFORE)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x, y = digits.train.first(20)
    outputs = net(x.flatten(1))
    binary_cross_entropy(outputs, y).sum().backward()
    e = outputs.detach().sigmoid() - torch.nn.functional.one_hot(y, 10)
    hidden = x.flatten(1)
    assert len(apical.learner_of(net).blocks) == 3
    for block in apical.learner_of(net).blocks.values():
        delta = e @ block.feedback
        torch.testing.assert_close(block[0].weight.grad, delta.t() @ hidden, rtol=1e-4, atol=1e-4)
        hidden = (hidden @ block[0].weight.t() + block[0].bias).tanh().detach()


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
def test_fixed_layers_stay_and_the_first_learns(rule, network, digits, tmp_path):
    condition = rule + ABOVE_FIXED
    net = network(condition)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    x, y = digits.train.first(20)
    binary_cross_entropy(net(x.flatten(1)), y).sum().backward()
    assert [parameter.grad is not None for parameter in net.parameters()] == [True] * 2 + [False] * (len(before) - 2)
    assert float(net[0].weight.grad.abs().max()) > 0
    record = DISCUSSION.run(Task(condition, (0, 1), 1.0, {"steps": 4}, tmp_path, digits))
    assert len(record.numbers["test error"]) == 2


def test_claims_of_the_discussion_can_hold_and_fail():
    def judged(**errors):
        records = {
            name: Record(
                curves={"train error": Curve([1.0], [[error]])},
                numbers={"train error": [error], "test error": [error]},
            )
            for name, error in errors.items()
        }
        return [claim.holds for claim in DISCUSSION.outcome(records).claims]

    names = DISCUSSION.conditions
    assert judged(**dict(zip(names, (20, 88, 89, 5, 5.5, 4), strict=True))) == [True] * 3
    assert judged(**dict(zip(names, (20, 60, 89, 5, 6.5, 7), strict=True))) == [False] * 3
    assert judged(dfa=5.0) == []


def test_a_deep_network_starts_after_glorot(digits, tmp_path):
    shallow = replace(TEXT_DEPTH, net=replace(TEXT_DEPTH.net, layers=3, units=30), rate=1e-30)
    record = shallow.run(Task(*TEXT_DEPTH.conditions, (0,), 1.0, {"steps": 1}, tmp_path, digits))
    (claim,) = shallow.outcome(dict.fromkeys(shallow.conditions, record)).claims
    assert not claim.holds
    assert np.isfinite(record.numbers["test error"]).all()
