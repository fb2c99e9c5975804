"""The papers' networks, their layers and losses, and the way from tied to untied ones."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
import comparison
from apical import networks
from apical.losses import cross_entropy, hinge
from apical.networks import (
    NETWORKS,
    LocallyConnected2d,
    SaturatedLinearity,
    UnscaledDropout,
    ZeroPaddedMaxPool2d,
    amit2019_deepernet,
    amit2019_deepnet_s,
    amit2019_simpnet,
    glorot,
    lansdell2020_cnn,
    mlp,
    nokland2016_conv,
    resnet18,
    resnet50,
    untie,
)
from apical.networks.resnet import BasicBlock, Bottleneck
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import seed

CIFAR = (3, 32, 32)


def products(net: nn.Module, shape=CIFAR) -> int:
    """Multiply-accumulates per sample: values of each layer's output times what each of them is a sum of."""
    found = 0

    def count(layer, args, y):
        nonlocal found
        terms = layer.weight[0, 0, 0] if isinstance(layer, LocallyConnected2d) else layer.weight[0]
        found += y[0].numel() * terms.numel()

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected2d):
            layer.register_forward_hook(count)
    net.eval()(torch.zeros(1, *shape))
    return found


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [  # reference 2.3, 4.2, 6.1, 6.3 and 6.6
        ("lansdell2020-cnn", 10, 92),
        ("lansdell2020-cnn-code", 10, 151),
        ("nokland2016-conv", 10, 125.5),
        ("amit2019-simpnet", 10, 6.56),
        ("amit2019-simpnet-untied", 10, 6.56),
        ("amit2019-deepnet", 100, 11.3),
        ("amit2019-deepernet", 10, 46.3),
        ("amit2019-deepnet-s", 10, 9.85),
        ("amit2019-deepnet-s-untied", 10, 9.85),
    ],
)
def test_networks_have_the_products_that_the_reference_counts(name, classes, millions):
    last = 10.0 ** -len(f"{millions:g}".partition(".")[2])  # Some are rounded there, some cut off.
    assert products(NETWORKS[name](CIFAR, classes)) / 1e6 == pytest.approx(millions, abs=last)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("name", ["simpnet", "deepnet", "deepernet", "deepnet_s"])
@pytest.mark.parametrize("untied", [False, True])
def test_amits_networks_have_no_biases_and_start_glorot_uniform(name, form, untied):
    torch.manual_seed(0)
    net = getattr(networks, f"amit2019_{name}")((1, 12, 9), 7, untied=untied, form=form)
    assert net(torch.randn(2, 1, 12, 9)).shape == (2, 7)
    layers = [one for one in net.modules() if "weight" in one._parameters]
    assert all(layer.bias is None for layer in layers)
    for layer in layers:
        share = layer.weight[:, 0, 0] if isinstance(layer, LocallyConnected2d) else layer.weight
        bound = (6 / (share[0].numel() + share[:, 0].numel())) ** 0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
    tied = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert len(tied) == ((1 if name == "deepnet_s" else 0) if untied else len(layers) - 2)
    assert len(layers) == {"simpnet": 3, "deepnet": 7, "deepernet": 10, "deepnet_s": 8}[name]
    slopes = {one.slope for one in net.modules() if isinstance(one, SaturatedLinearity)}
    places = {one.place for one in net.modules() if isinstance(one, ZeroPaddedMaxPool2d)}
    assert (slopes, places) == (({1.0}, {"centred"}) if form == "paper" else ({0.5}, {"corner"}))


def test_weights_that_the_reference_counts():
    simpnet, deepernet = amit2019_simpnet(untied=True), amit2019_deepernet(form="code")
    assert round(simpnet[0].weight.numel() / 1e6, 2) == 2.46
    assert deepernet[6].first[1].kernel_size == (2, 2)
    dropped = [one.p for one in amit2019_deepernet() if isinstance(one, nn.Dropout)]
    assert dropped == [0.5, 0.8]
    seven = [
        one for one in amit2019_deepnet_s(untied=True).modules() if isinstance(one, LocallyConnected2d | nn.Linear)
    ]
    assert len(seven) == 7


def test_the_sum_of_a_pair_sends_its_error_into_both():
    torch.manual_seed(0)
    pair = amit2019_deepernet((2, 4, 4))[0].double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    h = pair.first(x).clamp(-1, 1)
    torch.testing.assert_close(pair(x), h + pair.second(h).clamp(-1, 1))


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_saturated_linearity_and_its_derivative(slope):
    h = torch.tensor([-5, -1 / slope, -0.3, 0, 0.7, 1 / slope, 1 / slope + 1e-6, 9], dtype=torch.float64)
    h.requires_grad_()
    y = SaturatedLinearity(slope)(h)
    y.sum().backward()
    np.testing.assert_allclose(y.detach(), np.clip(slope * h.detach().numpy(), -1, 1))
    np.testing.assert_array_equal(h.grad, [0, slope, slope, slope, slope, slope, 0, 0])
    assert type(mlp([3, 2, 2], "saturated_linearity", bias=False)[2]) is SaturatedLinearity


@pytest.mark.parametrize("place", ["centred", "corner"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 3), (2, 2), (2, 3), (1, 1), (5, 2)])
@pytest.mark.parametrize("size", [(32, 7), (11, 6)])
def test_zero_padded_pooling_against_windows_one_by_one(place, kernel, stride, size):
    x = torch.randn(2, 3, *size, generator=seed(), dtype=torch.float64) - 1  # Mostly negative, so that zeros show.
    y = ZeroPaddedMaxPool2d(kernel, stride, place)(x)
    assert y.shape[2:] == tuple(-(-n // stride) for n in size)
    back = (kernel - 1) // 2 if place == "centred" else 0
    wide = F.pad(x, [kernel] * 4)
    for h in range(y.shape[2]):
        for w in range(y.shape[3]):
            top, left = h * stride - back + kernel, w * stride - back + kernel
            window = wide[:, :, top : top + kernel, left : left + kernel]
            torch.testing.assert_close(y[:, :, h, w], window.amax((2, 3)))


def test_dropout_without_rescaling():
    torch.manual_seed(0)
    x = torch.full((1000,), 3.0).requires_grad_()
    y = UnscaledDropout(0.8)(x)
    y.sum().backward()
    assert set(y.tolist()) == {0.0, 3.0}
    assert set(x.grad.tolist()) == {0.0, 1.0}
    assert 0.75 < float((y == 0).float().mean()) < 0.85  # 0.8 is what is dropped.
    assert torch.equal(UnscaledDropout(0.8).eval()(x), x)
    assert not UnscaledDropout(1.0)(x).any()


def test_lansdells_network_as_released():
    net = lansdell2020_cnn(100, form="code")
    convolutions = [one for one in net if isinstance(one, nn.Conv2d)]
    assert [one.out_channels for one in convolutions] == [96, 128, 256]
    assert [type(one) for one in net if isinstance(one, nn.Dropout)] == [UnscaledDropout] * 2
    for layer, size in zip(convolutions, (32, 16, 8), strict=True):
        assert layer.weight.abs().max() <= (size * size * layer.in_channels) ** -0.5
        assert bool((layer.bias == 0.1).all())
    assert net(torch.zeros(2, *CIFAR)).shape == (2, 100)


def test_noklands_network_starts_at_zero_for_feedback_alignment():
    assert not any(parameter.any() for parameter in nokland2016_conv(100, zero=True).parameters())
    net = nokland2016_conv(100)
    for layer in (net[0], net[-1]):
        for parameter in layer.parameters():
            bound = layer.weight[0].numel() ** -0.5
            assert 0.9 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize("mu", [None, 0.3])
def test_hinge_and_its_error_at_the_kinks(mu):
    outputs = torch.tensor([[1.0, -1.0, 0.5], [2.0, -3.0, -1.0], [0.2, 1.0, 1.5]], dtype=torch.float64)
    outputs.requires_grad_()
    targets, factor = torch.tensor([0, 2, 1]), 0.5 if mu is None else mu
    losses = hinge(outputs, targets, mu)
    losses.sum().backward()
    s = outputs.detach().numpy()
    for row, c in enumerate(targets):
        others = [i for i in range(3) if i != c]
        expected = max(1 - s[row, c], 0) + factor * sum(max(1 + s[row, i], 0) for i in others)
        assert float(losses[row].detach()) == pytest.approx(expected)
        for i in range(3):
            error = float(s[row, i] <= 1) if i == c else -factor * float(s[row, i] >= -1)  # eq. 6
            assert -float(outputs.grad[row, i]) == error
    with pytest.raises(ValueError, match="mu must be a number of at least 0, got -1"):
        hinge(outputs, targets, -1)
    with pytest.raises(ValueError, match="mu must be given for a single output"):
        hinge(outputs[:, :1], targets)


def test_rules_with_a_phase_learn_from_the_hinge():
    learner = apical.attach(net := amit2019_simpnet((2, 6, 6), 3), "np", example_input=X.float())
    criterion = functools.partial(hinge, mu=0.1)
    criterion(net(X.float()), Y).mean().backward()
    learner.adapt(X.float(), Y, criterion)


@pytest.mark.parametrize("layer", [nn.Linear(4, 6), nn.Conv1d(4, 6, 3, groups=2), LocallyConnected2d(4, 6, 3, 5)])
def test_glorot_starts_weights_and_feedback_alike(layer):
    glorot(layer, seed())
    assert not layer.bias.any()
    learner = apical.attach(layer, apical.rule("fa", init="glorot", track=True))
    share = layer.weight[:, 0, 0] if isinstance(layer, LocallyConnected2d) else layer.weight
    bound = (6 / (share[0].numel() + share[:, 0].numel())) ** 0.5
    for values in (layer.weight, learner.synapses[""].feedback):
        assert 0.8 * bound < values.abs().max() <= bound
    assert torch.equal(glorot(copy.deepcopy(layer), seed()).weight, layer.weight)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("norm", ["before", "after"])
def test_blocks_normalize_before_or_after_the_relu(block, norm):
    torch.manual_seed(0)
    one = block(8, 8 if block is BasicBlock else 2, 1, norm).eval()
    x, order = torch.randn(2, 8, 6, 6), []
    for name, module in one.named_modules():
        if name[:2] in ("bn", "re", "co"):
            module.register_forward_hook(lambda m, a, y, name=name: order.append(name))
    assert one(x).shape == x.shape
    steps = [["conv", "bn", "relu"], ["conv", "relu", "bn"]][norm == "after"]
    assert order == [f"{step}{n}" for n in range(1, 3 if block is BasicBlock else 4) for step in steps]
    assert isinstance(block(8, 4, 2, norm).shortcut, nn.Sequential if norm == "before" else nn.Conv2d)


@pytest.mark.parametrize("make", [resnet18, resnet50])
@pytest.mark.parametrize("norm", ["before", "after"])
def test_resnets_with_a_small_stem_keep_the_size_of_small_images(make, norm):
    with torch.device("meta"):
        net = make(10, norm=norm, stem="small")
        assert net[:3](torch.empty(2, *CIFAR)).shape == (2, 64, 32, 32)
        assert isinstance(net[1], nn.BatchNorm2d if norm == "before" else nn.ReLU)
        assert net[:-3](torch.empty(2, *CIFAR)).shape[2:] == (4, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet18(norm="none"), "norm must be 'before' or 'after' the ReLU, got 'none'"),
        (lambda: resnet18(stem="tiny"), "stem must be 'large' or 'small'"),
        (lambda: lansdell2020_cnn(form="printed"), r"form must be 'paper' \(as printed\) or 'code' .*got 'printed'"),
        (lambda: amit2019_simpnet(form="printed"), "form must be 'paper'"),
        (lambda: SaturatedLinearity(0), "slope must be a positive number, got 0"),
        (lambda: ZeroPaddedMaxPool2d(3, 0), "stride must be a whole number of at least 1, got 0"),
        (lambda: ZeroPaddedMaxPool2d(3, 2, "left"), "place must be 'centred' or 'corner', got 'left'"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# From tied to untied ---------------------------------------------------------------------------------------------------


def tied() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.5)]
    return nn.Sequential(*first, nn.Conv2d(3, 4, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)).double()


def step(learner: apical.Learner) -> None:
    optimizer = torch.optim.SGD(learner.model.parameters(), 0.1)
    for _ in range(2):
        cross_entropy(learner.model(X), Y).mean().backward()
        learner.adapt(X, Y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("connectivity", [None, 0.5])
@pytest.mark.parametrize("rule", ["urfb", "frfb", "frsf", "wm", "kp-direct"])
def test_a_trained_learner_goes_on_untied_from_where_it_was(rule, connectivity):
    learner = apical.attach(tied(), rule, example_input=X, generator=seed(1), connectivity=connectivity)
    step(learner)
    before = learner.model.eval()(X)
    cross_entropy(before, Y).mean().backward()
    wanted = {name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None}
    learner.model.zero_grad()
    learner.model.train()
    torch.manual_seed(5)
    modes, running = learner.model.training, learner.model[1].running_mean.clone()
    untie(learner, ["0", "4"], X)
    assert torch.initial_seed() == 5
    assert learner.model.training is modes
    assert torch.equal(running, learner.model[1].running_mean)
    assert [type(learner.model[n]).plain for n in (0, 4)] == [LocallyConnected2d] * 2
    assert learner.adapted == (2 if rule == "wm" else 0)
    after = learner.model.eval()(X)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    cross_entropy(after, Y).mean().backward()
    for name, p in learner.model.named_parameters():
        if p.grad is not None:
            grad = p.grad.sum((1, 2)) if p.dim() > wanted[name].dim() else p.grad
            torch.testing.assert_close(grad, wanted[name], rtol=1e-10, atol=1e-12)
    synapse = learner.synapses["4"]
    if rule != "kp-direct":
        assert torch.equal(synapse.feedback, synapse.feedback[:, :1, :1].expand_as(synapse.feedback))
    step(learner)
    assert not torch.equal(synapse.weight[:, 0, 0], synapse.weight[:, 1, 2])
    if connectivity is not None:
        assert not synapse.weight[synapse.weight_mask == 0].any()
    apical.audit(learner, X, Y, cross_entropy)


def test_a_convolution_that_is_used_under_two_names_stays_one():
    net = tied()
    net = nn.Sequential(
        net[0], nn.Tanh(), (shared := nn.Conv2d(3, 3, 3, padding=1).double()), nn.Tanh(), shared, *net[4:]
    )
    learner = apical.attach(net, "kp", example_input=X)
    untie(learner, ["2"], X)
    assert net[2] is net[4]
    assert type(net[2]).plain is LocallyConnected2d


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.spare, self.head = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.head(self.conv(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    ("make", "layers", "message"),
    [
        (tied, ["0", "5"], "layers names '5', which is no synapse; "),
        (tied, ["7"], r"layers names '7', a Linear; only an nn\.Conv2d"),
        (lambda: nn.Conv2d(2, 3, 3).double(), [""], "the model is itself the convolution.*nn.Sequential"),
        (Twice, ["conv"], r"'conv' meets inputs of \[\(4, 4\), \(6, 6\)\] in one pass, .*leave it tied"),
        (Twice, ["spare"], "'spare' is not reached by example_input"),
    ],
)
def test_what_can_not_be_untied_is_said_and_nothing_changed(make, layers, message):
    net = make()
    learner = apical.attach(net, apical.rule("kp", track=True))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        untie(learner, layers, X)
    comparison.equal(net.state_dict(), before, 0)


def test_copies_and_strings_are_refused():
    learner = apical.attach(apical.replicate([tied(), tied()]), "kp", example_input=torch.stack([X, X]))
    with pytest.raises(ValueError, match="copies side by side can't be untied; untie each network's"):
        untie(learner, ["0"], X)
    with pytest.raises(ValueError, match=r"layers takes a list of module names, got the string '0'; write \['0'\]"):
        untie(learner, "0", X)


class Readout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))

    def forward(self, x):
        return x @ self.W


def test_a_learner_that_can_not_take_the_new_layers_has_the_old_ones():
    net = tied()
    learner = apical.attach(net, "kp", example_input=X)
    first = net[0]
    net.append(Readout())
    with pytest.raises(ValueError, match="its W is a weight"):
        untie(learner, ["0"], X)
    assert net[0] is first is learner.synapses["0"]
    del net[8]
    step(learner)
