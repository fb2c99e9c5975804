"""Layers of other libraries, by classes that stand in for theirs under their names."""

import copy
import pickle
import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.synapses import registry

X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))


class Conv1D(nn.Module):
    """A linear layer with weights [in, out], as transformers has it for GPT-2."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class StdConv2d(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Conv2dSame(nn.Conv2d):
    """A convolution that pads as much as it needs."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    for kind, name in ((Conv1D, "transformers.pytorch_utils"), (StdConv2d, "timm.layers.std_conv")):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(module, kind.__name__, kind, raising=False)
        monkeypatch.setattr(kind, "__module__", name)
    monkeypatch.setattr(Conv2dSame, "__module__", "timm.layers.conv2d_same")
    monkeypatch.setattr(registry, "SYNAPSES", dict(registry.SYNAPSES))


def transposed():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), Conv1D(4, 5), nn.Tanh(), Conv1D(3, 4)), X


def standardised():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), StdConv2d(4, 4, 2), nn.Tanh(), StdConv2d(4, 2, 2, stride=2)
    ), IMAGES


def same():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), Conv2dSame(4, 4, 2, stride=2), nn.Tanh(), nn.Conv2d(4, 2, 2)
    ), IMAGES


def learn(net, x):
    net.zero_grad()
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if not name.endswith("feedback")}


@pytest.mark.parametrize("make", [transposed, standardised, same])
@pytest.mark.parametrize("rule", ["bp", "fa", "kp"])
def test_same_gradients_as_the_plain_network_where_the_feedback_is_the_weights(make, rule):
    torch.manual_seed(0)
    net, x = make()
    plain = copy.deepcopy(net)
    if rule == "kp" and make is not transposed:
        with pytest.raises(ValueError, match="computes"):
            apical.attach(net, rule, example_input=x)
        return
    learner = apical.attach(net, rule, example_input=x)
    torch.testing.assert_close(net(x), plain(x))
    used = {} if rule == "bp" else {n: s for n, s in learner.synapses.items() if s.feedback is not None}
    for synapse in used.values():
        synapse.feedback = vars(synapse).get("current_weight", synapse.weight)
    found, expected = learn(net, x), learn(plain, x)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    if rule == "kp":
        for synapse in used.values():
            torch.testing.assert_close(synapse.feedback.grad, synapse.weight.grad)
    learner.detach()
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("rule", ["dfa", "usf", "wm", "reinforce"])
@pytest.mark.parametrize("make", [transposed, standardised, same])
def test_rules_learn(make, rule):
    net, x = make()
    x = x[:, 0] if make is transposed else x  # Positions of a sequence are each on their own here.
    learner = apical.attach(net, rule, example_input=x)
    losses = lambda out, y: out.flatten(1).square().mean(1)  # noqa: E731
    learn(net, x)
    learner.adapt(x, None, losses)
    assert all(s.weight.grad is not None and bool(s.weight.grad.any()) for s in learner.synapses.values())


def test_transposed_weights_are_drawn_and_fanned_as_they_lie():
    net = nn.Sequential(nn.Linear(6, 30), Conv1D(5, 30))
    init = lambda tensor: tensor.copy_(torch.arange(5.0)[:, None].expand(5, 30))  # noqa: E731
    learner = apical.attach(net, {"": "fa", "1": apical.rule("fa", init=init)}, example_input=X)
    synapse = learner.synapses["1"]
    assert synapse.fans() == (30, 5)
    torch.testing.assert_close(synapse.feedback, torch.arange(5.0).expand(30, 5))


def test_an_attached_network_is_pickled():
    net, x = transposed()
    apical.attach(net, "fa", example_input=x)
    registry_kind = type(net[2])
    again = pickle.loads(pickle.dumps(net))
    assert type(again[2]) is registry_kind
    torch.testing.assert_close(learn(again, x), learn(net, x))
