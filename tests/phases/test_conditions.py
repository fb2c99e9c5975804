"""A phase passes the batch under the conditions of the loop: normalization, autocast, compiled code, calls by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from comparison import close, equal
from networks import ResidualNet, dynamo
from phases.common import RULES, X, Y, attach, everything, feedback, learn, rule_of


class Activated(nn.BatchNorm1d):
    """A normalization with its activation inside."""

    def forward(self, x):
        return torch.tanh(2 + super().forward(x))


class Spelled(nn.BatchNorm1d):
    """The same, spelled out."""

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        own = self.training or self.running_mean is None
        mean, variance = (
            (self.running_mean, self.running_var) if not self.training or self.track_running_stats else (None,) * 2
        )
        y = nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, own, self.momentum, self.eps)
        return torch.tanh(2 + y)


def patched(*args, **kwargs):
    """The same, put on one layer from outside."""
    norm = nn.BatchNorm1d(*args, **kwargs)
    norm.forward = lambda x: torch.tanh(2 + nn.BatchNorm1d.forward(norm, x))
    return norm


class After(nn.Module):
    def forward(self, x):
        return torch.tanh(2 + x)


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "reinforce"])
@pytest.mark.parametrize("kind", [Activated, Spelled, patched])
@pytest.mark.parametrize("tracked", [True, False])
def test_a_normalization_that_does_more_learns_as_its_parts_do(rule, kind, tracked):
    x = X[:, 0].flatten(1)

    def run(make):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(36, 6), *make(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        learner = attach(net, rule, x.double())
        forwards = [module.forward for module in net]
        for _ in range(2):
            cross_entropy(net(x.double()), Y).mean().backward()
            learner.adapt(x.double(), Y, cross_entropy)
        assert [module.forward for module in net] == forwards
        return [*everything(net, learner).values()]

    apart = run(lambda: [nn.BatchNorm1d(6, track_running_stats=tracked), After()])
    for found, expected in zip(run(lambda: [kind(6, track_running_stats=tracked)]), apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_autocast_learns_nearly_the_same(rule):
    def run(half):
        net = ResidualNet()
        options = {"mixed": "wm"}.get(rule, rule)
        learner = attach(net, options)
        torch.manual_seed(1)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = cross_entropy(net(X), Y)
            losses.mean().backward()
            learner.adapt(X, Y, cross_entropy)
        assert all(bool(tensor.isfinite().all()) for tensor in everything(net, learner).values())
        return feedback(learner)

    found, expected = run(True), run(False)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    if rule in ("wm", "sg", "sg-direct", "mirror-direct"):
        close(found, expected, 0.05)


@dynamo
@pytest.mark.parametrize(
    "rule", ["np", "sg-direct", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("wm", "reinforce"))]
)
def test_compiled_models_run_their_phase(rule):
    net = ResidualNet()
    learner = attach(net, rule)
    compiled = torch.compile(net, backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    before = feedback(learner)
    learn(net, learner, 3, optimizer=optimizer, call=compiled)
    for name, value in feedback(learner).items():
        assert not torch.equal(value, before[name]), name


class Named(nn.Module):
    """Layers called by name, or by position."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(72, 9), nn.ConvTranspose1d(1, 2, 2, stride=2), nn.Linear(38, 3)
        self.named = named

    def forward(self, x):
        x = x.flatten(1)
        h = torch.tanh(self.a(input=x) if self.named else self.a(x)).unsqueeze(1)
        g = self.b(output_size=[19], input=h) if self.named else self.b(h, [19])
        return self.head(input=torch.tanh(g.flatten(1))) if self.named else self.head(torch.tanh(g.flatten(1)))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("rule", ["fa", "dfa", "wm", "np", "np-direct", "sg", "reinforce"])
def test_layers_called_by_name_learn_as_those_called_by_position(rule, shown):
    shown = shown or apical.rule(rule).direct
    found = []
    for net in (Named(False), Named(True)):
        noise = apical.NoisyActivations(net, 0.1)
        learner = apical.attach(
            net, rule, example_input=X if shown else None, generator=torch.Generator().manual_seed(1)
        )
        torch.manual_seed(2)
        learn(net, learner, 2)
        measured = apical.alignment(learner, X, Y, cross_entropy)
        found.append((everything(net, learner), torch.get_rng_state(), measured))
        noise.remove()
    equal(found[1][0], found[0][0])
    assert torch.equal(found[1][1], found[0][1])
    assert found[1][2] == found[0][2]
    assert "a.feedback" not in found[1][0]


def test_normalizations_called_by_name_are_recorded():
    class Net(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](input=self[0](x.flatten(1))))

    net = Net(nn.Linear(72, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    learner = apical.attach(net, "np")
    net(X).sum().backward()
    (found,) = learner.phases.recorder.newest.conditions.normalized[net[1]]
    torch.testing.assert_close(found.mean, net[0](X.flatten(1)).mean(0))


@pytest.mark.parametrize("rule", ["np-direct", "sg-direct", "mirror-direct"])
def test_taps_at_blocks_learn(rule):
    net = ResidualNet()
    learner = apical.attach(net, rule_of(rule), example_input=X[:2], at=["norm", "block"])
    before = feedback(learner)
    assert list(learner.blocks) == ["norm", "block"]
    learn(net, learner, 2)
    changed = {name for name, value in feedback(learner).items() if not torch.equal(value, before[name])}
    # Inside a block the signal goes layer by layer; no signal leaves what stands right behind a cut.
    assert {"norm", "block"} <= changed
    assert net.stem.weight.grad is not None


@pytest.mark.parametrize("rule", [*RULES, "replicas"])
def test_an_empty_batch_teaches_nothing(rule):
    """Neither feedback nor weights move, and the next batch finds all in order."""
    if rule == "replicas":
        net = apical.replicate(nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3)), 2)
        x, y = torch.stack([X, X]), torch.stack([Y, Y])
        learner = apical.attach(net, "np", example_input=x)
    else:
        net, x, y = ResidualNet().eval(), X, Y
        learner = attach(net, rule)
    before = feedback(learner)
    for n in (0, 5):
        batch = (x[:, :n], y[:, :n]) if rule == "replicas" else (x[:n], y[:n])
        cross_entropy(net(batch[0]).flatten(0, -2), batch[1].flatten()).sum().backward()
        learner.adapt(*batch, cross_entropy)
        assert any(bool(p.grad.any()) for p in net.parameters() if p.grad is not None) == (n > 0)
        if n == 0:
            equal(feedback(learner), before)
            net.zero_grad()
    assert learner.adapted == 2
