"""Phases compute in the loop's bfloat16 and in the memory format of activities and kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from apical.phases import phase
from networks import seed

X, Y = torch.randn(8, 3, 6, 6, generator=seed(1)), torch.randint(3, (8,), generator=seed(2))


def images(form=torch.channels_last) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 1), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3)
    return nn.Sequential(*layers).to(memory_format=form)


@pytest.mark.parametrize("rule", ["fa", "kp", "wm", "np"])
def test_feedback_has_the_memory_format_of_its_kernels(rule):
    net = images()
    learner = apical.attach(net, rule, example_input=X)
    assert learner.synapses["2"].feedback.stride() == net[2].weight.stride() == (4, 1, 4, 4)


@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_the_memory_format_changes_no_number(rule):
    nets = images(), images(torch.contiguous_format)
    for net in nets:
        apical.attach(net, rule, example_input=X, generator=seed(3))
        cross_entropy(net(X), Y).mean().backward()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("pool", [1, 2**20])  # numbers from which on noise is taken from a pool
@pytest.mark.parametrize("half", [False, True])
def test_noise_has_format_and_precision_of_the_activities(half, pool, monkeypatch):
    found = {}
    monkeypatch.setattr("apical.noise.POOL", pool)
    estimates = phase.estimates
    monkeypatch.setattr(phase, "estimates", lambda *args: found.update(estimates(*args)) or found)
    net = images()
    learner = apical.attach(net, "np", example_input=X)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = cross_entropy(net(X.to(memory_format=torch.channels_last)), Y)
    losses.mean().backward()
    before = learner.synapses["2"].feedback.clone()
    learner.adapt(X, Y, cross_entropy)
    noise = found["2", 0].values
    assert noise.dtype == (torch.bfloat16 if half else torch.float32)
    assert noise.stride() == torch.empty(8, 4, 4, 4).to(memory_format=torch.channels_last).stride()
    assert learner.synapses["2"].feedback.dtype == torch.float32
    assert not torch.equal(learner.synapses["2"].feedback, before)


@pytest.mark.parametrize("rule", ["np", "sg", "wm"])
def test_doubles_stay_doubles_under_autocast_which_leaves_them_alone(rule):
    nets = images().double(), images().double()
    for net, half in zip(nets, (True, False), strict=True):
        learner = apical.attach(net, rule, example_input=X.double(), generator=seed(3))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = cross_entropy(net(X.double()), Y)
        losses.mean().backward()
        learner.adapt(X.double(), Y, cross_entropy)
    for one, other in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_mirrors_meet_their_weights_in_bfloat16(form):
    """Each pair of noise and answer is rounded to eight bits, and B comes near W all the same."""
    net = images(form)
    learner = apical.attach(net, apical.rule("wm", activation="linear", batch=256, decay=0.5), example_input=X)
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(net(X), Y).mean()
        loss.backward()
        learner.adapt(X, Y, cross_entropy)
    W, B = net[2].weight.detach().flatten(), learner.synapses["2"].feedback.flatten()
    assert torch.cosine_similarity(W, B, 0) > 0.99


def test_slices_of_a_pool_are_not_correlated(monkeypatch):
    """Means over phases of products of noise at two places, within four standard errors of none."""
    monkeypatch.setattr("apical.noise.POOL", 64)
    products = []
    for n in range(400):
        supply = apical.noise.Supply(
            "gaussian", [64, 64, 64], generator=seed(n), device=torch.device("cpu"), dtype=torch.float32
        )
        one, other, third = (values * signs for values, signs in (supply.take(torch.Size([8, 8])) for _ in range(3)))
        products.append(torch.stack([one * other, one * third, other * third]))
    found = torch.stack(products).mean((0, 2, 3))
    assert found.abs().max() < 4 * (400 * 64) ** -0.5
