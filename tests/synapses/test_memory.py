"""Memory of large gradients is used again only when nobody holds it."""

import pytest
import torch
from torch import nn

import apical
from apical.synapses import memory as recycle


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(recycle, "SMALLEST", 0)


def like(*shape):
    return torch.empty(*shape)


def test_a_block_is_used_again_after_its_holder_let_go():
    memory = recycle.Recycler()
    first = memory.take("a", like(4, 5))
    address = first.data_ptr()
    del first
    assert memory.take("a", like(4, 5)).data_ptr() == address


@pytest.mark.parametrize(
    "hold", [lambda t: t, lambda t: t[1:], lambda t: t.t(), lambda t: t.numpy(), lambda t: t.detach()]
)
def test_a_block_that_somebody_holds_is_left_alone(hold):
    memory = recycle.Recycler()
    block = memory.take("a", like(4, 5)).fill_(1)
    held = hold(block)
    del block
    other = memory.take("a", like(4, 5)).fill_(2)
    assert (torch.as_tensor(held) == 1).all()
    assert (other == 2).all()


def test_shape_and_dtype_are_those_asked_for():
    memory = recycle.Recycler()
    memory.take("a", like(4, 5))
    assert memory.take("a", like(2, 3)).shape == (2, 3)
    assert memory.take("a", torch.empty(2, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("rule", ["fa", "kp", "usf"])
def test_gradients_that_are_kept_stay_as_they_were(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4))
    x = torch.randn(5, 6)
    apical.attach(net, rule, example_input=x)
    history, copies = [], []
    for step in range(4):
        net(x * (step + 1)).square().sum().backward()
        history.append([p.grad for p in net.parameters() if p.grad is not None])
        copies.append([g.clone() for g in history[-1]])
        net.zero_grad()
    for kept, copy in zip(history, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, copy, strict=True))


@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_accumulated_gradients_are_sums(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    apical.attach(net, rule, example_input=x)
    singles = []
    for k in range(3):
        net(x * (k + 1)).square().sum().backward()
        singles.append([p.grad.clone() for p in net.parameters()])
        net.zero_grad()
    for k in range(3):
        net(x * (k + 1)).square().sum().backward()
    for p, *parts in zip(net.parameters(), *singles, strict=True):
        torch.testing.assert_close(p.grad, sum(parts))


def test_weight_and_feedback_gradients_do_not_share_memory():
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    learner = apical.attach(net, "kp", example_input=torch.randn(5, 6))
    net(torch.randn(5, 6)).sum().backward()
    synapse = learner.synapses["2"]
    before = synapse.feedback.grad.clone()
    synapse.weight.grad.mul_(3)
    assert torch.equal(synapse.feedback.grad, before)
