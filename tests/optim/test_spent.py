"""Clipping and loss scaling, which find no gradient where LocalSGD has taken it, are refused there and as ever elsewhere."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

import apical
from apical.losses import cross_entropy
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import flat_chain


def local(rule="fa", net=None):
    net = flat_chain() if net is None else net
    return net, apical.LocalSGD(apical.attach(net, rule, example_input=X), 0.1)


@pytest.mark.parametrize("rule", ["fa", "np"])
@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_, nn.utils.clip_grad_norm_])
@pytest.mark.parametrize("which", ["all", "one", "generator"])
def test_clipping_what_has_moved_is_refused(clip, which, rule):
    net, optimizer = local(rule)
    clip_grad_norm_(net.parameters(), 1.0)  # Nothing has come yet.
    cross_entropy(net(X), Y).mean().backward()
    given = {"all": list(net.parameters()), "one": net[4].weight, "generator": (p for p in net.parameters())}[which]
    with pytest.raises(RuntimeError, match=r"no gradient of '\d' to clip.*torch\.optim\.SGD"):
        clip(given, 1.0)
    assert all(p.grad is None for p in net[4].parameters())
    optimizer.step()
    clip_grad_norm_(net.parameters(), 1.0)


def test_clipping_elsewhere_is_as_ever():
    local()
    net = nn.Linear(3, 2)
    net(torch.ones(1, 3)).sum().backward()
    assert float(clip_grad_norm_(net.parameters(), 1.0)) == pytest.approx(8**0.5)
    assert float(net.weight.grad.square().sum() + net.bias.grad.square().sum()) == pytest.approx(1, rel=1e-4)
    clip_grad_value_(net.weight, 0.1)
    assert float(net.weight.grad.max()) == pytest.approx(0.1)


def test_what_the_optimizer_takes_is_ordinary_before_and_after_and_in_copies():
    net, optimizer = local("kp")
    own = [p for module in (net[4], net[6]) for p in module.parameters()]
    assert {type(p) for p in own} == {nn.Parameter}
    cross_entropy(net(X), Y).mean().backward()
    assert all(isinstance(p, nn.Parameter) for p in own)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert {type(p) for p in other.parameters()} == {nn.Parameter}
        cross_entropy(other(X), Y).mean().backward()
        clip_grad_norm_(other.parameters(), 1.0)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    assert float(clip_grad_norm_(net[4].weight, 1.0)) == pytest.approx(net[4].weight.numel() ** 0.5)
    net[4].weight.grad = None
    optimizer.step()
    assert {type(p) for p in own} == {nn.Parameter}


class Special(nn.Parameter):
    pass


def test_parameters_of_somebody_elses_class_keep_it():
    net = flat_chain()
    net[4].weight = Special(net[4].weight.detach())
    net, optimizer = local(net=net)
    before = net[4].weight.detach().clone()
    cross_entropy(net(X), Y).mean().backward()
    assert type(net[4].weight) is Special
    assert not torch.equal(net[4].weight, before)
    optimizer.step()
    assert type(net[4].weight) is Special


class Scaler(torch.amp.GradScaler):
    """As PyTorch's own for CUDA, or for sharded gradients."""


def scaled(optimizer_of, rule, how, settings, steps=6):
    """What a loop with a GradScaler makes of a network; the third loss is infinite, so that its step is left out."""
    net = flat_chain().float()
    learner = apical.attach(net, rule, example_input=X.float(), generator=torch.Generator().manual_seed(3))
    scaler = (Scaler if how == "clipped" else torch.amp.GradScaler)("cpu", init_scale=2.0**14, growth_interval=2)
    optimizer = optimizer_of(learner, lr=0.1, **settings)
    torch.manual_seed(4)
    for step in range(steps):
        loss = cross_entropy(net(X.float()), Y).mean() * (float("inf") if step == 2 else 1.0)
        scaler.scale(loss).backward()
        if how == "clipped":
            scaler.unscale_(optimizer)
            clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() == 2.0**15  # Twice as large after the second and fifth, half after the third.
    return net


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}])
@pytest.mark.parametrize("how", ["plain", "clipped"])
@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_with_a_scaler_it_is_torchs_sgd_to_the_last_bit(rule, how, settings):
    own = scaled(apical.LocalSGD, rule, how, settings)
    its = scaled(lambda one, **given: torch.optim.SGD(one.model.parameters(), **given), rule, how, settings)
    for a, b in zip(own.parameters(), its.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


@pytest.mark.parametrize("call", ["step", "unscale_"])
@pytest.mark.parametrize("rule", ["fa", "np"])
def test_a_scaler_that_comes_after_weights_have_moved_is_refused(rule, call):
    net, optimizer = local(rule)
    cross_entropy(net(X), Y).mean().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(cross_entropy(net(X), Y).mean()).backward()
    with pytest.raises(
        RuntimeError, match=r"took the gradient of '\d' .* with the loss's scale.*before the first backward"
    ):
        getattr(scaler, call)(optimizer)


def test_a_scaler_that_is_off_is_left_alone():
    net, optimizer = local()
    off = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(2):
        off.scale(cross_entropy(net(X), Y).mean()).backward()
        assert net[4].weight.grad is None
        off.step(optimizer)
        off.update()
