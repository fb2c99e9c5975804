"""Perturbation and gradient regression of feedback weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import apical
from apical.losses import squared_error
from networks import mlp
from numeric.perturbed import attach, batch, half_square


def test_rate_zero_is_feedback_alignment():
    def weights(rule, **options):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Tanh(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 3),
        )  # fmt: skip
        x, y = torch.randn(8, 2, 6, 6), torch.randint(3, (8,))
        learner = attach(net, rule, x, **options)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            squared_error(net(x), y).mean().backward()
            learner.adapt(x, y, squared_error)
            optimizer.step()
            optimizer.zero_grad()
        return net.state_dict()

    fa, own = weights("fa"), weights("np", rate=0)
    assert fa.keys() == own.keys()
    assert all(torch.equal(fa[key], own[key]) for key in fa)


def numpy_signals(net, learner, x, y):
    """Inputs, errors as the feedback brings them, and true gradients at every layer's input, layers in forward order."""
    layers = [m for m in net if isinstance(m, nn.Linear)]
    W = [m.weight.detach().numpy() for m in layers]
    b = [m.bias.detach().numpy() for m in layers]
    h, a = [x.numpy()], []
    for w, bias in zip(W, b, strict=True):
        a.append(h[-1] @ w.T + bias)
        h.append(np.tanh(a[-1]))
    e = a[-1] - y.numpy()
    ours, true = [e], [e]
    for k in range(len(W) - 1, 0, -1):
        B = layers[k].feedback.numpy()
        slope = 1 - h[k] ** 2
        direct = B.shape != W[k].shape or learner.rule.pathway.name == "direct"
        ours.insert(0, (e @ B if direct else ours[0] @ B) * slope)
        true.insert(0, (true[0] @ W[k]) * slope)
    lam = [true[k] @ W[k] for k in range(len(W))]
    return e, ours, lam


@pytest.mark.parametrize("loop", ["mean", "sum", "scaled", "other batch"])
@pytest.mark.parametrize("rule", ["sg", "sg-direct"])
def test_one_step_of_synthetic_gradients_is_the_formula(rule, loop):
    torch.manual_seed(0)
    net, rate = mlp([6, 5, 4, 3]), 0.3
    x, y = batch(7, 6, 3)
    learner = attach(net, rule, x, rate=rate)
    e, ours, lam = numpy_signals(net, learner, x, y)
    before = {k: learner.synapses[k].feedback.numpy().copy() for k in ("2", "4")}
    losses = half_square(net(x.clone() if loop == "other batch" else x), y)
    {"mean": losses.mean, "sum": losses.sum, "scaled": (7 * losses).mean, "other batch": losses.mean}[loop]().backward()
    learner.adapt(x, y, half_square)
    for k, name in ((1, "2"), (2, "4")):
        error = e if rule == "sg-direct" else ours[k]
        expected = before[name] - rate / 7 * error.T @ (error @ before[name] - lam[k])
        np.testing.assert_allclose(learner.synapses[name].feedback.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["sg", "sg-direct"])
def test_ridge_is_the_normal_equation_of_all_batches(rule):
    torch.manual_seed(0)
    net, gamma = mlp([6, 5, 4, 3]), 0.2
    x, _ = batch(7, 6, 3)
    learner = attach(net, rule, x, solver="ridge", gamma=gamma)
    sums = {name: [0.0, 0.0] for name in ("2", "4")}
    for step in range(4):
        x, y = batch(7, 6, 3, seed=step)
        e, ours, lam = numpy_signals(net, learner, x, y)
        half_square(net(x), y).mean().backward()
        learner.adapt(x, y, half_square)
        for k, name in ((1, "2"), (2, "4")):
            error = e if rule == "sg-direct" else ours[k]
            sums[name][0] = sums[name][0] + error.T @ error
            sums[name][1] = sums[name][1] + error.T @ lam[k]
        if step == 1:
            # Through a checkpoint and on.
            state, own = copy.deepcopy(net.state_dict()), learner.state_dict()
            net = mlp([6, 5, 4, 3])
            learner = attach(net, rule, x, seed=9, solver="ridge", gamma=gamma)
            net.load_state_dict(state)
            learner.load_state_dict(own)
    for name, (V, S) in sums.items():
        expected = np.linalg.solve(V + gamma * np.eye(len(V)), S)
        np.testing.assert_allclose(learner.synapses[name].feedback.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cast_at", [0, 2])
def test_ridge_sums_in_double_precision_whatever_the_model_is_cast_to(rule, dtype, cast_at):
    torch.manual_seed(0)
    net = mlp([6, 5, 4, 3])
    x, y = batch(7, 6, 3)
    learner = attach(net, rule, x, solver="ridge", gamma=1.0)
    for step in range(4):
        if step == cast_at:
            net, x, y = net.to(dtype), x.to(dtype), y.to(dtype)
        half_square(net(x), y).mean().backward()
        learner.adapt(x, y, half_square)
    owner = net[4]
    V, S = owner._buffers["gram"], owner._buffers["cross"]
    assert V.dtype == S.dtype == torch.float64
    torch.testing.assert_close(owner.feedback, torch.linalg.solve(V, S).to(dtype).view(owner.feedback.shape))


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(4, 6, 3, dilation=2, padding=2, padding_mode="circular"),
    nn.Conv2d(4, 6, 2, padding="same"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_on_convolutions_the_step_is_the_derivative_of_the_squared_error(layer):
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1).double(), nn.Tanh(), layer, nn.Tanh(), nn.Flatten())
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    y = torch.randn_like(net(x))
    plain = copy.deepcopy(net)
    learner = attach(net, "sg", x, rate=0.5)
    synapse = learner.synapses["2"]
    before = synapse.feedback.clone()
    half_square(net(x), y).mean().backward()
    learner.adapt(x, y, half_square)
    # The layer above the convolution is the loss itself, so its error is backpropagation's.
    h = plain[1](plain[0](x)).detach().requires_grad_()
    a = plain[2](h)
    (delta,) = torch.autograd.grad(half_square(plain[4](plain[3](a)), y).sum(), a, retain_graph=True)
    (lam,) = torch.autograd.grad(a, h, delta)
    other = copy.deepcopy(plain[2])
    B = before.clone().requires_grad_()

    def carried(weight):
        return torch.autograd.grad(
            torch.func.functional_call(other, {"weight": weight}, (h,)), h, delta, create_graph=True
        )[0]

    error = (carried(B) - lam).square().sum() / 2
    (gradient,) = torch.autograd.grad(error, B)
    torch.testing.assert_close(synapse.feedback, before - 0.5 / 5 * gradient, rtol=1e-9, atol=1e-12)


def regress(net, rule, c, T, outputs, seed, noise_batch=2000, feedback=()):
    """Ridge regression over T samples with W fixed; the learner."""
    inputs = net[0].in_features
    example, _ = batch(2, inputs, outputs)
    if isinstance(rule, str):
        rule = apical.rule(rule, solver="ridge", noise=c, gamma=1e-6)
    learner = apical.attach(net, rule, example_input=example, generator=torch.Generator().manual_seed(seed))
    for name in feedback:
        learner.synapses[name].feedback = feedback[name]
    for step in range(T // noise_batch):
        x, y = batch(noise_batch, inputs, outputs, seed=1000 * seed + step)
        half_square(net(x), y).mean().backward()
        learner.adapt(x, y, half_square)
        net.zero_grad()
    return learner


def relative_error(B, W):
    return float((B - W).norm() / W.norm())


def slope_of(errors):
    return np.polyfit(np.log(list(errors)), np.log([np.mean(values) for values in errors.values()]), 1)[0]


def test_theorem_1_the_top_layer_of_a_tanh_network_converges_to_the_weights():
    errors = {}
    for T in (4000, 16000, 64000):
        for seed in range(3):
            torch.manual_seed(0)
            net = mlp([5, 6, 4])
            learner = regress(net, "np", 0.01, T, 4, seed)
            errors.setdefault(T, []).append(relative_error(learner.synapses["2"].feedback, net[2].weight.detach()))
    assert slope_of(errors) == pytest.approx(-0.5, abs=0.15)
    assert np.mean(errors[64000]) < 0.05


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_theorem_2_a_linear_network_learns_all_its_weights_without_bias_in_c(c):
    errors = {"4": {}, "2": {}}
    for T in (8000, 32000, 128000):
        for seed in range(3):
            torch.manual_seed(0)
            net = mlp([4, 4, 4, 4], nn.Identity)
            for layer in (net[2], net[4]):
                nn.init.orthogonal_(layer.weight)
            # Top-down, as the theorem has it: the layer above is known when the next one is estimated.
            known = {}
            for name in ("4", "2"):
                rules = {"": "fa", name: apical.rule("np", solver="ridge", noise=c, gamma=1e-6)}
                learner = regress(net, rules, c, T, 4, seed, feedback=known)
                known[name] = learner.synapses[name].feedback.clone()
                errors[name].setdefault(T, []).append(relative_error(known[name], net[int(name)].weight.detach()))
                learner.detach()
    for name, found in errors.items():
        assert slope_of(found) == pytest.approx(-0.5, abs=0.15), (name, found)
        assert np.mean(found[128000]) < 0.05


def test_corollary_1_direct_feedback_converges_to_the_product_of_the_weights_above():
    errors = {}
    for T in (8000, 32000, 128000):
        for seed in range(3):
            torch.manual_seed(0)
            net = mlp([4, 6, 5, 3], nn.Identity)
            learner = regress(net, "np-direct", 0.1, T, 3, seed)
            product = (net[4].weight @ net[2].weight).detach()
            errors.setdefault(T, []).append(relative_error(learner.synapses["2"].feedback, product))
    assert slope_of(errors) == pytest.approx(-0.5, abs=0.2)
    assert np.mean(errors[128000]) < 0.08


def test_the_bias_of_a_nonlinear_network_shrinks_with_the_noise():
    def learned(rule, c=None):
        torch.manual_seed(0)
        net = nn.Sequential(*mlp([5, 6, 4]), nn.Tanh()).double()
        with torch.no_grad():
            net[0].weight.mul_(3)
        options = {} if c is None else {"noise": c}
        return (
            regress(net, apical.rule(rule, solver="ridge", gamma=1e-6, **options), c, 60000, 4, 0)
            .synapses["2"]
            .feedback
        )

    # The limit of small noise is the regression on the true gradient.
    limit = learned("sg-direct")
    small, large = (relative_error(learned("np-direct", c), limit) for c in (0.05, 2.0))
    assert small < 0.1
    assert large > 2 * small


def test_the_rank_condition_only_what_errors_span_is_identified():
    torch.manual_seed(0)
    # 6 > 2 outputs: errors at the hidden layer lie in a plane.
    net = mlp([4, 6, 6, 2], nn.Identity)
    learner = regress(net, "np", 0.1, 200_000, 2, 0)
    B, W = learner.synapses["2"].feedback, net[2].weight.detach()
    errors = torch.randn(50, 2, dtype=torch.float64) @ learner.synapses["4"].feedback
    assert relative_error(errors @ B, errors @ W) < 0.1
    assert relative_error(B, W) > 0.5


def test_ridge_says_where_it_can_not_be():
    wide = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1_000_000))
    narrow = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten())
    for net, x, says in ((wide, torch.zeros(1, 2), "GiB of sums for '1'"), (narrow, torch.zeros(1, 1, 2, 2), "Conv2d")):
        with pytest.raises(ValueError, match=says):
            apical.attach(net, apical.rule("np", solver="ridge"), example_input=x)
        assert type(net[1]) in (nn.Linear, nn.Conv2d)
        assert not list(net.buffers())
