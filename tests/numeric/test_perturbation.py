"""Node perturbation: no bias, the variance of the formula, one sample at a time."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import apical
from apical.noise import POOL, Supply
from apical.phases.clean_pass import CleanPass
from networks import mlp
from numeric.perturbed import attach, batch, half_square


def gradients(net) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("kind", ["mlp", "convolution"])
def test_reinforce_estimates_the_gradient_without_bias(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        net, x, outputs = mlp([4, 5, 4, 3]), torch.randn(6, 4, dtype=torch.float64), 3
    else:
        net = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
        ).double()
        x, outputs = torch.randn(6, 1, 5, 5, dtype=torch.float64), 3
    y = torch.randn(6, outputs, dtype=torch.float64)
    half_square(net(x), y).mean().backward()
    true = gradients(net)
    learner = attach(net, "reinforce", x, noise=1e-4)
    found = []
    for _ in range(600):
        net.zero_grad()
        half_square(net(x), y).mean().backward()
        learner.adapt(x, y, half_square)
        found.append(gradients(net))
    last = [name for name in true if name.startswith(str(len(net) - 1))]
    for name, expected in true.items():
        samples = torch.stack([one[name] for one in found])
        if name in last:
            torch.testing.assert_close(samples[0], expected)
            continue
        error = samples.std(0) / math.sqrt(len(samples))
        assert ((samples.mean(0) - expected).abs() < 5 * error).all(), name


@pytest.mark.parametrize("width", [3, 12, 40])
def test_the_variance_of_reinforce_follows_the_number_of_units(width):
    torch.manual_seed(0)
    net = mlp([4, width, width, 3], nn.Identity)
    x = torch.randn(4000, 4, dtype=torch.float64)
    weights = torch.tensor([0.5, -1.0, 0.8], dtype=torch.float64)

    def linear_loss(outputs, targets):
        return outputs @ weights

    # With a loss linear in the activities, L~ - L is exactly sum_k lambda_k xi_k c.
    upper = weights @ net[4].weight.detach()
    lower = upper @ net[2].weight.detach()
    learner = attach(net, "reinforce", x, noise=0.1)
    linear_loss(net(x), None).sum().backward()
    learner.adapt(x, None, linear_loss)
    # The bias gradient of a layer sums its deltas; single samples' estimates come from the places themselves.
    from apical.phases.noisy_pass import estimates
    from apical.phases.phase import Phase

    linear_loss(net(x), None).sum().backward()
    with torch.no_grad():
        phase = Phase(learner, x, None, linear_loss)
        phase.sites = learner.phases.sites()
        found = estimates(phase, ["2", "4"], 0.1, "gaussian")
    for name, own, other in (("2", lower, upper), ("4", upper, lower)):
        squares = found[name, 0].tensor.square().sum(1)
        own_power, other_power = float(own.square().sum()), float(other.square().sum())
        expected = (width + 2) * own_power + width * other_power
        error = float(squares.std()) / math.sqrt(len(squares))
        assert float(squares.mean()) == pytest.approx(expected, abs=5 * error)


def noisy_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    ).double()


def test_both_passes_have_the_same_masks_and_statistics():
    x, y = batch(64, 4, 3)
    seen = {}
    for c in (1e-3, 1e-5):
        net = noisy_net()
        learner = attach(net, "np", x, noise=c, solver="ridge")
        torch.manual_seed(3)
        half_square(net(x), y).mean().backward()
        learner.adapt(x, y, half_square)
        seen[c] = net[6].cross.clone()
    # Another mask or statistic would add a term that grows like 1 / c.
    torch.testing.assert_close(seen[1e-3], seen[1e-5], rtol=0.05, atol=0.05 * float(seen[1e-5].abs().max()))


def test_noise_in_one_sample_does_not_reach_another_through_batch_normalization():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)
    ).double()
    x, y = batch(16, 4, 3)
    learner = attach(net, "np", x)
    half_square(net(x), y).mean().backward()
    with torch.no_grad():
        episode = CleanPass(learner, x, y, half_square)

        def one(place, call, activity):
            changed = activity.clone()
            changed[5] += 0.5
            return changed

        change = (episode.perturbed(one) - episode.losses).abs()
    assert float(change[5]) > 1e-3
    change[5] = 0
    assert float(change.max()) < 1e-12


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "reinforce", "wm"])
def test_statistics_and_random_state_are_as_without_the_phase(rule):
    x, y = batch(16, 4, 3)

    def after(adapt):
        net = noisy_net()
        learner = attach(net, rule, x)
        torch.manual_seed(3)
        half_square(net(x), y).mean().backward()
        if adapt:
            learner.adapt(x, y, half_square)
        return net[1].running_mean, net[1].running_var, net[1].num_batches_tracked, torch.get_rng_state()

    assert all(torch.equal(a, b) for a, b in zip(after(True), after(False), strict=True))


@pytest.mark.parametrize("rule", ["np", "np-direct", "reinforce"])
@pytest.mark.parametrize("source", ["generator", "numpy"])
def test_randomness_beyond_the_global_generator_is_refused(rule, source):
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator, self.numbers = torch.Generator(), np.random.default_rng(0)

        def forward(self, x):
            if source == "numpy":
                return x + torch.from_numpy(self.numbers.normal(size=x.shape))
            return x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype)

    net = nn.Sequential(nn.Linear(4, 5), Random(), nn.Linear(5, 3)).double()
    x, y = batch(8, 4, 3)
    learner = attach(net, rule, x)
    before = copy.deepcopy(net.state_dict())
    half_square(net(x), y).mean().backward()
    with pytest.raises(RuntimeError, match=r"PyTorch's global generator.*eval mode"):
        learner.adapt(x, y, half_square)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_pooled_noise_has_unit_variance_and_no_correlation_between_places():
    shape = torch.Size([64, 16, 8, 8])
    products = []
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        supply = Supply("gaussian", [shape.numel()] * 20, generator=g, device=torch.device("cpu"), dtype=torch.float32)
        assert supply.pool is not None
        assert len(supply.pool) == POOL
        a, b = (values * signs for values, signs in (supply.take(shape) for _ in range(2)))
        assert float(a.mean()) == pytest.approx(0, abs=5 / math.sqrt(a.numel()))
        assert float(a.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / a.numel()))
        products.append(float((a * b).mean()))
    # Where both places cover the same numbers, a sample's products all share one sign: 64 independent signs.
    assert abs(np.mean(products)) < 5 / math.sqrt(64 * 20)


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "reinforce"])
def test_a_scalar_criterion_is_refused(rule):
    net = mlp([4, 5, 3])
    x, y = batch(8, 4, 3)
    learner = attach(net, rule, x)
    half_square(net(x), y).mean().backward()
    with pytest.raises(ValueError, match="one loss per sample"):
        learner.adapt(x, y, nn.functional.mse_loss)


@pytest.mark.parametrize("rule", ["np", "np-direct", "reinforce"])
@pytest.mark.parametrize("noise", [0, -0.1, math.nan, "big", True])
def test_noise_of_no_scale_is_refused(rule, noise):
    with pytest.raises(ValueError, match=r"noise must be a (positive )?number"):
        apical.rule(rule, noise=noise)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"solver": "adam"}, "solver"), ({"rate": -1}, "rate"), ({"gamma": 0}, "gamma"), ({"warmup": 0.5}, "warmup")],
)
def test_bad_hyperparameters_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        apical.rule("np", **options)
