"""The weight mirror against exact Gaussian forms (reference 1.7)."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from torch import nn

import apical
from apical.losses import squared_error

N = 200_000


def learner_of(layer: nn.Module, x: torch.Tensor, seed: int = 1, **options) -> tuple[apical.Learner, apical.Synapse]:
    """A learner whose synapse "1" mirrors `layer`; "0" passes x on with a weight, so that a signal leaves the mirror."""
    model = nn.Sequential(nn.Linear(x.shape[-1], x.shape[-1], dtype=x.dtype), copy.deepcopy(layer))
    learner = apical.attach(
        model, apical.rule("wm", **options), example_input=x, generator=torch.Generator().manual_seed(seed)
    )
    synapse = learner.synapses["1"]
    synapse.feedback = torch.zeros_like(synapse.weight)
    return learner, synapse


def mirrored(layer: nn.Module, x: torch.Tensor, rows: int, **options) -> torch.Tensor:
    """One mirror step of rate 1 without decay from B = 0: an estimate of E[dB]."""
    learner, synapse = learner_of(layer, x, batch=rows, rate=1.0, decay=0.0, positions=None, **options)
    learner.adapt(x, None, squared_error)
    return synapse.feedback.double()


def layer_with_bias() -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(5, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-1.0, -0.3, 0.4, 1.2]))
    return layer


def slope(name: str, b: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """E[phi'(u)] for u ~ N(b, sd^2)."""
    if name == "linear":
        return np.ones_like(b)
    if name == "relu":
        return ndtr(b / sd)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    u = b[:, None] + sd[:, None] * nodes
    return (weights * (1 - np.tanh(u) ** 2)).sum(1) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("sigma", [1.0, 0.3])
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("name", ["linear", "relu", "tanh"])
def test_expected_step_is_the_gaussian_form(name, blocking, sigma):
    layer = layer_with_bias()
    W = layer.weight.detach().numpy()
    b = np.zeros(4) if blocking else layer.bias.detach().numpy()
    found = mirrored(layer, torch.zeros(2, 5).double(), N, noise=sigma, activation=name, bias_blocking=blocking).numpy()
    expected = sigma**2 * slope(name, b, sigma * np.linalg.norm(W, axis=1))[:, None] * W
    # Of one product r~ z: at most sd(r) sd(z), as |phi'| <= 1; with covariance a little above, hence the factor.
    error = 1.5 * sigma**2 * np.linalg.norm(W, axis=1, keepdims=True) / math.sqrt(N)
    assert (np.abs(found - expected) < 5 * error).all()


def test_relu_without_bias_mirrors_half_the_weights_for_any_scale_and_removes_a_constant():
    torch.manual_seed(1)
    layer = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    for sigma in (0.1, 1.0, 4.0):
        found = mirrored(layer, torch.zeros(2, 6).double(), N, noise=sigma) / sigma**2
        torch.testing.assert_close(found, layer.weight.detach() / 2, atol=0.012, rtol=0)


def test_batch_means_take_one_sample_out_of_n():
    torch.manual_seed(2)
    layer, n = nn.Linear(3, 2, bias=False, dtype=torch.float64), 4
    learner, synapse = learner_of(
        layer, torch.zeros(n, 3).double(), activation="linear", rate=1.0, decay=0.0, batches=10_000
    )
    learner.adapt(torch.zeros(n, 3).double(), None, squared_error)
    found = synapse.feedback / 10_000
    torch.testing.assert_close(found, (1 - 1 / n) * layer.weight.detach(), atol=0.02, rtol=0)
    learner, synapse = learner_of(
        layer, torch.zeros(n, 3).double(), activation="linear", rate=1.0, decay=0.0, batches=10_000, baseline=0.0
    )
    learner.adapt(torch.zeros(n, 3).double(), None, squared_error)
    torch.testing.assert_close(synapse.feedback / 10_000, layer.weight.detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("distribution", ["gaussian", "uniform", "rademacher"])
def test_every_distribution_has_the_variance_asked_for(distribution):
    layer = layer_with_bias()
    found = mirrored(
        layer, torch.zeros(2, 5).double(), N, noise=0.5, distribution=distribution, activation="linear", baseline=0.0,
        bias_blocking=True,
    )  # fmt: skip
    torch.testing.assert_close(found, 0.25 * layer.weight.detach(), atol=0.004, rtol=0)


def test_a_scalar_baseline_is_taken_from_the_answer():
    # eqs 23-25: with r = phi((z - beta) W^T + b) and z ~ N(beta, .), E[(r - beta)(z - beta)] is as without beta.
    layer = layer_with_bias()
    found = mirrored(layer, torch.zeros(2, 5).double(), N, activation="linear", baseline=0.7)
    torch.testing.assert_close(found, layer.weight.detach(), atol=0.03, rtol=0)


KINDS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 9)),
    (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 5)),
    (nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), groups=2), (4, 7, 8)),
    (nn.Conv2d(3, 4, 2, padding="same"), (3, 4, 4)),
    (nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
    (nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1), (4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 4, 4)),
    (nn.ConvTranspose3d(2, 3, 2, dilation=2), (2, 3, 3, 3)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("layer", "shape"), KINDS, ids=lambda value: repr(value))
def test_convolutions_mirror_the_same_at_every_offset(layer, shape):
    torch.manual_seed(3)
    layer = copy.deepcopy(layer).double()
    x = torch.zeros(2, *shape).double()
    model = nn.Sequential(nn.PReLU(dtype=torch.float64), layer)
    learner = apical.attach(
        model, apical.rule("wm", batch=6000, rate=1.0, decay=0.0, positions=None, bias_blocking=True), example_input=x
    )
    synapse = learner.synapses["1"]
    synapse.feedback = torch.zeros_like(synapse.weight)
    learner.adapt(x, None, squared_error)
    found, W = synapse.feedback, synapse.weight.detach()
    sd = W.square().mean().sqrt() * math.sqrt(synapse.fans()[0])
    assert (found - W / 2).abs().max() < 6 * sd / math.sqrt(6000)
    # Border effects would make the corners of the kernel systematically smaller.
    assert float((found * W).sum() / W.square().sum()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("activation", "c"), [("linear", 1.0), ("relu", 1.36)])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_angle_follows_the_tangent_law(kind, activation, c):
    torch.manual_seed(4)
    rate, lam, sigma = 0.1, 0.5, 1.0
    if kind == "linear":
        layer, x, rows, positions, fan_in = nn.Linear(2048, 10, bias=False), torch.zeros(2, 2048), 256, 1, 2048
        model = nn.Sequential(nn.PReLU(), layer)
    else:
        layer, rows, positions, fan_in = nn.Conv2d(64, 8, 3, bias=False), 8, 16, 576
        x = torch.zeros(2, 64, 6, 6)
        model = nn.Sequential(nn.PReLU(), layer)
    learner = apical.attach(
        model, apical.rule("wm", activation=activation, batch=rows, noise=sigma, rate=rate, decay=lam), example_input=x
    )
    synapse = learner.synapses["1"]
    angles = []
    for step in range(240):
        learner.adapt(x, None, squared_error)
        if step >= 120 and step % 20 == 19:
            angles.append(apical.measures.angle(synapse.weight, synapse.feedback))
    d = rate * lam
    effective = rows * positions * (2 - d) / d
    expected = math.degrees(math.atan(math.sqrt(c * fan_in / effective)))
    assert np.mean(angles) == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("times_rate", [True, False])
def test_both_readings_of_the_decay(times_rate):
    layer = layer_with_bias()
    rate, lam = 0.05, 0.2
    learner, synapse = learner_of(
        layer, torch.zeros(2, 5).double(), activation="linear", batch=2000, rate=rate, decay=lam,
        decay_times_rate=times_rate, bias_blocking=True,
    )  # fmt: skip
    synapse.feedback = 10 * torch.ones_like(synapse.weight)
    shrink = rate * lam if times_rate else lam
    W = layer.weight.detach()
    for step in range(1, 31):
        learner.adapt(torch.zeros(2, 5).double(), None, squared_error)
        factor = (1 - shrink) ** step
        expected = factor * 10 + (1 - factor) * rate / shrink * W
        torch.testing.assert_close(synapse.feedback, expected, atol=0.15 * rate / shrink * (1 - factor) + 1e-9, rtol=0)


def test_no_data_is_touched_and_nothing_but_feedback_changes():
    def after(fill: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        x = torch.full((16, 6), fill)
        learner = apical.attach(net, "wm", example_input=x, generator=torch.Generator().manual_seed(1))
        before = copy.deepcopy(net.state_dict())
        random = torch.get_rng_state()
        learner.adapt(x, torch.full((16,), 10**6), lambda outputs, targets: 1 / 0)
        assert torch.equal(random, torch.get_rng_state())
        assert all(p.grad is None for p in net.parameters())
        state = net.state_dict()
        assert [key for key in state if not torch.equal(state[key], before[key])] == ["4.feedback"]
        return state

    ordinary, poisoned = after(0.5), after(math.nan)
    assert torch.equal(ordinary["4.feedback"], poisoned["4.feedback"])


@pytest.mark.parametrize("pathway", ["layer-wise", "direct"])
def test_a_minibatch_of_one_sample_mirrors_with_two_rows(pathway):
    """One row is all that its mean takes away: the feedback would do nothing but decay."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, dtype=torch.float64), nn.Linear(3, 2, bias=False, dtype=torch.float64))
    rule = apical.Rule(pathway, apical.Mirror(rate=1 / 2000, decay=0.0, batches=2000, activation="linear"))
    x = torch.zeros(1, 4).double()
    learner = apical.attach(net, rule, example_input=x)
    net[1].feedback = torch.zeros(2, 3)
    learner.adapt(x, None, squared_error)
    torch.testing.assert_close(net[1].feedback, net[1].weight.detach() / 2, atol=0.02, rtol=0)


def test_warmup_holds_the_weights_and_alternation_takes_turns():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    x = torch.randn(8, 4)
    learner = apical.attach(net, apical.rule("wm", warmup=2, alternate=True), example_input=x)
    changed = []
    for _ in range(4):
        before = {name: s.feedback.clone() for name, s in learner.synapses.items() if s.feedback is not None}
        net(x).square().sum().backward()
        learner.adapt(x, None, squared_error)
        changed.append(
            [name for name, value in before.items() if not torch.equal(learner.synapses[name].feedback, value)]
        )
        assert (net[0].weight.grad is None) == (len(changed) <= 2)
        net.zero_grad()
    assert changed == [["1", "3"], ["2", "4"]] * 2


def test_a_state_goes_on_bit_identically():
    def build() -> tuple[nn.Module, apical.Learner]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        return net, apical.attach(
            net, "wm", example_input=torch.zeros(2, 4), generator=torch.Generator().manual_seed(5)
        )

    x = torch.zeros(8, 4)
    (net, learner), (other, its) = build(), build()
    learner.adapt(x, None, squared_error)
    state, own = copy.deepcopy(net.state_dict()), learner.state_dict()
    learner.adapt(x, None, squared_error)
    other.load_state_dict(state)
    its.load_state_dict(own)
    its.adapt(x, None, squared_error)
    assert torch.equal(net[2].feedback, other[2].feedback)
    assert its.adapted == 2


def test_the_direct_mirror_learns_the_product_of_the_weights_above():
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(a, b, dtype=torch.float64) for a, b in ((4, 6), (6, 5), (5, 3))))
    rule = apical.Rule("direct", apical.Mirror(rate=1.0, decay=0.0, batch=N, noise=0.5))
    x = torch.zeros(2, 4).double()
    learner = apical.attach(net, rule, example_input=x)
    for name in ("1", "2"):
        learner.synapses[name].feedback = torch.zeros_like(learner.synapses[name].feedback)
    learner.adapt(x, None, squared_error)
    W1, W2 = net[1].weight.detach(), net[2].weight.detach()
    torch.testing.assert_close(learner.synapses["2"].feedback, 0.25 * W2, atol=0.005, rtol=0)
    torch.testing.assert_close(learner.synapses["1"].feedback, 0.25 * W2 @ W1, atol=0.005, rtol=0)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@settings(deadline=None, max_examples=40)
@given(
    dims=st.integers(1, 3), transposed=st.booleans(), groups=st.integers(1, 2), kernel=st.integers(1, 3),
    stride=st.integers(1, 2), dilation=st.integers(1, 2), padding=st.sampled_from([0, 1, "same", "circular"]),
    positions=st.sampled_from([None, 1, 5]), bias=st.booleans(),
)  # fmt: skip
def test_any_convolution_mirrors(dims, transposed, groups, kernel, stride, dilation, padding, positions, bias):
    options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": bias}
    if transposed or padding in (0, 1):
        options["padding"] = padding if padding in (0, 1) else 0
    elif padding == "same":
        options.update(padding="same", stride=1)
    else:
        options.update(padding=1, padding_mode="circular")
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    layer = kind(2 * groups, 2 * groups, kernel, **options)
    x = torch.zeros(3, 2 * groups, *[7] * dims)
    net = nn.Sequential(nn.PReLU(), layer)
    learner = apical.attach(net, apical.rule("wm", positions=positions), example_input=x)
    before = net[1].feedback.clone()
    learner.adapt(x, None, squared_error)
    assert net[1].feedback.shape == net[1].weight.shape
    assert net[1].feedback.dtype == torch.float32
    assert bool(net[1].feedback.isfinite().all())
    assert not torch.equal(before, net[1].feedback)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": 0}, "noise must be a positive number, got 0"),
        ({"noise": -1.0}, "noise"),
        ({"noise": math.nan}, "noise"),
        ({"noise": math.inf}, "noise"),
        ({"distribution": "normal"}, "distribution must be 'gaussian', 'uniform' or 'rademacher', got 'normal'"),
        ({"activation": "rleu"}, "activation must be one of linear, relu"),
        ({"rate": 0}, "rate"),
        ({"rate": 2.0, "decay": 0.5}, "decay"),
        ({"decay": 1.0, "decay_times_rate": False}, "decay"),
        ({"batch": 0}, "batch"),
        ({"batch": 1}, "batch=1"),
        ({"batches": 0}, "batches"),
        ({"positions": 0}, "positions"),
        ({"warmup": -1}, "warmup"),
        ({"baseline": "mean"}, "baseline"),
    ],
)
def test_bad_hyperparameters_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        apical.rule("wm", **options)
