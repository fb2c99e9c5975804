"""Locally connected layers against loops over positions: of every geometry, and under every rule."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import apical
import comparison
from apical.losses import cross_entropy
from apical.networks import LocallyConnected2d
from learning import RULES
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import seed
from replicas.common import OPTIMIZERS, attached, same, trained
from synapses.common import attach, learn, near, sgd, thin
from synapses.plain import QUICK

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def meets(layer: LocallyConnected2d, h: int, w: int) -> tuple[slice, slice]:
    """The part of the padded input that the output position (h, w) meets."""
    starts = [n * s for n, s in zip((h, w), layer.stride, strict=True)]
    sizes = zip(starts, layer.kernel_size, layer.dilation, strict=True)
    high, wide = (slice(start, start + d * (k - 1) + 1, d) for start, k, d in sizes)
    return high, wide


def loop(layer: LocallyConnected2d):
    """Position, number and channels of a group, its output channels, and what it meets: one by one."""
    for h, w in itertools.product(*map(range, layer.output_size)):
        for group in range(layer.groups):
            i, o = layer.in_channels // layer.groups, layer.out_channels // layer.groups
            inward, outward = slice(group * i, (group + 1) * i), slice(group * o, (group + 1) * o)
            yield h, w, inward, outward, meets(layer, h, w)


class Looped(LocallyConnected2d):
    """The same layer, for which a synapse of loops stands in."""


class LoopedSynapse(apical.Synapse, Looped):
    """All operations position by position."""

    plain, unit_dim = Looped, None

    def prepare(self, x, *args):
        return self.padded(x), self.geometry

    def unbordered(self, features, positions=None):
        sizes = [n + sum(side) for n, side in zip(self.input_size, self.sides, strict=True)]
        return torch.Size([self.in_channels, *sizes]), self.geometry

    def transmit(self, x, weight, bias, geometry=()):
        x = x if geometry else self.padded(x)
        y = x.new_zeros(len(x), self.out_channels, *self.output_size)
        for h, w, inward, outward, met in loop(self):
            y[:, outward, h, w] = x[:, inward, *met].flatten(1) @ weight[outward, h, w].flatten(1).t()
        return y if bias is None else y + bias

    def feed_back(self, delta, feedback, shape, geometry=()):
        inputs = self.unbordered(shape)[0]
        signal = delta.new_zeros(len(delta), *inputs)
        for h, w, inward, outward, met in loop(self):
            back = delta[:, outward, h, w] @ feedback[outward, h, w].flatten(1)
            signal[:, inward, *met] += back.view(len(delta), -1, *self.kernel_size)
        if geometry:
            return signal
        (top, _), (left, _) = self.sides  # Of zeros, in the networks below.
        return signal[:, :, top : top + shape[2], left : left + shape[3]]

    def hebbian(self, x, delta, geometry=()):
        x = x if geometry else self.padded(x)
        product = torch.zeros_like(self.weight)
        for h, w, inward, outward, met in loop(self):
            own = delta[:, outward, h, w].t() @ x[:, inward, *met].flatten(1)
            product[outward, h, w] = own.view(-1, *product.shape[3:])
        return product

    def respond(self, x, delta, feedback, shape, geometry, need_weight, need_bias):
        signal, product, _ = super().respond(x, delta, feedback, shape, geometry, need_weight, False)
        return signal, product, delta.sum(0) if need_bias else None

    def fans(self):
        return self.weight[0, 0, 0].numel(), len(self.weight) * self.weight[0, 0, 0, 0].numel()


apical.register_synapse(Looped, LoopedSynapse)


@st.composite
def layers(draw):
    def each(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups, mode = draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from(["zeros", *MODES]))
    padding = draw(st.sampled_from(["same", "valid", "numbers", "numbers"]))
    options = {
        "stride": (1, 1) if padding == "same" else each(1, 3),
        "padding": each(0, 2) if padding == "numbers" else padding,
        "dilation": each(1, 2),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": mode,
    }
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    torch.manual_seed(draw(st.integers(0, 99)))
    # Large enough for the largest kernel and padding.
    layer = LocallyConnected2d(*channels, each(1, 3), each(5, 7), **options, dtype=torch.float64)
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    return layer, torch.randn(*batch, channels[0], *layer.input_size, dtype=torch.float64)


def expected(layer: LocallyConnected2d, x: np.ndarray, delta: np.ndarray, feedback: np.ndarray) -> list[np.ndarray]:
    """Output, signal, product and bias sum, by a loop over positions, in NumPy."""
    weight, (high, wide) = layer.weight.detach().numpy(), layer.input_size
    bias = np.zeros(layer.weight.shape[:3]) if layer.bias is None else layer.bias.detach().numpy()
    options = {"constant_values": -1} if layer.padding_mode == "zeros" else {}
    places = np.pad(np.arange(high * wide).reshape(high, wide), layer.sides, MODES[layer.padding_mode], **options)
    rows = np.concatenate(
        [x.reshape(*x.shape[:2], high * wide), np.zeros((*x.shape[:2], 1))], 2
    )  # The last for padding.
    y, signal, product = np.zeros_like(delta), np.zeros_like(rows), np.zeros_like(weight)
    for h, w, inward, outward, met in loop(layer):
        at, W = places[met], weight[outward, h, w]
        found = rows[:, inward][:, :, at]
        y[:, outward, h, w] = np.einsum("ncij,ocij->no", found, W) + bias[outward, h, w]
        product[outward, h, w] = np.einsum("no,ncij->ocij", delta[:, outward, h, w], found)
        back = np.einsum("no,ocij->ncij", delta[:, outward, h, w], feedback[outward, h, w])
        np.add.at(signal[:, inward], (slice(None), slice(None), at), back)
    return [y, signal[:, :, :-1].reshape(x.shape), product, delta.sum(0)]


@QUICK
@given(layers())
def test_equal_to_a_loop_over_positions(case):
    layer, x = case
    plain = layer(x.requires_grad_())
    delta = torch.randn(plain.shape, generator=seed(), dtype=torch.float64)
    arrays = [(t if t.dim() == 4 else t[None]).detach().numpy() for t in (x, delta)]
    plain.backward(delta)
    told = [plain, x.grad, layer.weight.grad, *([] if layer.bias is None else [layer.bias.grad])]
    for rule in (None, "bp", "fa", "kp"):
        if rule is not None:
            own = copy.deepcopy(layer)
            own.zero_grad()
            learner = apical.attach(own, apical.rule(rule, track=True), generator=seed(3))
            leaf = x.detach().requires_grad_()
            y = own(leaf)
            y.backward(delta)
            told = [y, leaf.grad, own.weight.grad, *([] if own.bias is None else [own.bias.grad])]
            if rule == "kp":
                assert torch.equal(own._parameters["feedback"].grad, own.weight.grad)
        feedback = layer.weight if rule is None else learner.synapses[""].feedback
        wanted = expected(layer, *arrays, feedback.detach().numpy())
        for got, one in zip(told, wanted, strict=False):
            assert got.dtype == torch.float64
            np.testing.assert_allclose(got.detach().numpy().reshape(one.shape), one, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            assert torch.equal(layer(x) if rule is None else own(x), plain)


def network(kind: type[LocallyConnected2d] | None = None) -> nn.Sequential:
    """A chain that keeps the shape between its last two synapses, as the indirect rule wants it. None: the seed decides."""
    if kind is not None:
        torch.manual_seed(0)
    kind = kind or LocallyConnected2d
    return nn.Sequential(
        kind(2, 4, 3, 6, padding=1, stride=2, bias=False),
        nn.Tanh(),
        kind(4, 4, 2, 3, padding="same", groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()


@pytest.mark.parametrize("optimizer", ["torch", pytest.param("local", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "ifa"])
def test_learns_as_a_loop_over_positions_under_every_rule(rule, optimizer):
    nets = network(LocallyConnected2d), network(Looped)
    found = []
    for net in nets:
        learner = attach(net, rule, None)
        learn(learner, OPTIMIZERS[optimizer](net, momentum=0.9), 3)
        report = apical.audit(learner, X, Y, cross_entropy)
        found.append((report.transported, apical.alignment(learner, X, Y, cross_entropy)))
    comparison.equal(nets[0].state_dict(), nets[1].state_dict(), 1e-10)
    assert found[0][0] == found[1][0]
    for name, one in found[0][1].items():
        for key, value in vars(one).items():
            its = vars(found[1][1][name])[key]
            assert value == its or value == pytest.approx(its, rel=1e-6, abs=1e-4), (name, key)


def test_indirect_signals_go_forward_through_a_locally_connected_layer():
    made = []
    for kind in (LocallyConnected2d, Looped):
        torch.manual_seed(0)
        inner = [nn.Tanh(), kind(4, 4, 3, 3, padding=1), nn.Tanh(), kind(4, 4, 3, 3, padding=1)]
        net = nn.Sequential(kind(2, 4, 2, 6, stride=2), *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
        learner = attach(net, "ifa", None)
        learn(learner, sgd(learner), 2)
        made.append(net)
    comparison.equal(made[0].state_dict(), made[1].state_dict(), 1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["kp", "wm", "frsf", "kp-direct", "np"])
def test_copies_side_by_side_are_single_networks(rule, optimizer):
    singles = attached(network, rule)
    same(trained(singles, OPTIMIZERS[optimizer]), singles)


def test_a_mirror_learns_every_position_by_itself():
    net = network()
    learner = attach(net, apical.rule("wm", activation="linear", rate=0.3, decay=1.0, batch=400, positions=1), None)
    synapse = learner.synapses["2"]
    shape, geometry = synapse.unbordered(torch.Size([4, 3, 3]), 1)
    assert shape == (4, 4, 4)  # Noise in the padding, and no position less.
    assert synapse.pairs(torch.empty(5, *shape), synapse.conduct(torch.zeros(5, *shape).double(), geometry)) == 5
    learn(learner, torch.optim.SGD(net.parameters(), 0.0), 30)
    errors = (synapse.feedback - synapse.weight).flatten(3).norm(dim=3) / synapse.weight.flatten(3).norm(dim=3)
    assert errors.max() < 0.2


def test_absent_connections_stay_absent():
    learner = attach(network(), "kp", 0.5)
    near(learner.synapses["2"].weight_mask, 0.5)
    learn(learner, sgd(learner), 3)
    assert thin(learner) == 5
    with torch.no_grad():  # One image by itself, too.
        torch.testing.assert_close(learner.model[0](X[0]), learner.model[0](X)[0])


@pytest.mark.parametrize("rule", [None, "fa"])
def test_autocast_casts_all_of_the_layer(rule):
    layer = LocallyConnected2d(2, 4, 3, 6)
    if rule is not None:
        apical.attach(layer, rule)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(X.float())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), copy.deepcopy(layer)(X.float()), atol=0.03, rtol=0.03)


def test_a_state_goes_on_in_a_new_network_and_plain_layers_come_back():
    first, second = attach(network(), "kp", None), attach(network(), "kp", None)
    learn(first, sgd(first), 2)
    state = copy.deepcopy(first.model.state_dict())
    assert state["2.feedback"].shape == state["2.weight"].shape == (4, 3, 3, 2, 2, 2)
    second.model.load_state_dict(state)
    for learner in (first, second):
        learn(learner, sgd(learner), 1)
    comparison.equal(first.model.state_dict(), second.model.state_dict(), 0)
    assert type(first.detach()[0]) is LocallyConnected2d


def test_per_sample_gradients_by_a_transform_are_those_of_single_samples():
    net = network()
    apical.attach(net, "fa")
    weights = dict(net.named_parameters())

    def loss(weights, x, y):
        return cross_entropy(torch.func.functional_call(net, weights, x[None]), y[None]).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, X, Y)
    for index in (0, 5):
        net.zero_grad()
        loss(weights, X[index], Y[index]).backward()
        comparison.equal({n: g[index] for n, g in found.items()}, {n: p.grad for n, p in weights.items()}, 1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be a whole number of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        ({"out_channels": 3, "groups": 2}, "out_channels must be a multiple of groups=2, got 3; groups=1 always goes"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be a number or two of them.*got \(3, 3, 3\)"),
        ({"kernel_size": 2.5}, "kernel_size must be a whole number of at least 1, got 2.5; or give two"),
        ({"stride": (1, 0)}, "stride must be a whole number of at least 1, got 0"),
        ({"padding": -1}, "padding must be a whole number of at least 0, got -1"),
        ({"padding": "full"}, "padding must be a number, two of them, 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, r"padding='same' goes with stride=1 alone, got stride=\(2, 2\)"),
        ({"padding_mode": "edge"}, "padding_mode must be one of zeros, .*, got 'edge'"),
        ({"padding": 6, "padding_mode": "reflect"}, r"padding=\(6, 6\) is more than padding_mode='reflect' finds"),
        (
            {"kernel_size": 4, "dilation": 2},
            r"dilation=\(2, 2\) spans 7 x 7 positions, and input_size=\(6, 6\) has, pad",
        ),
    ],
)
def test_bad_arguments_are_named_with_a_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        LocallyConnected2d(**{"in_channels": 2, "out_channels": 4, "kernel_size": 3, "input_size": 6, **options})


@pytest.mark.parametrize("rule", [None, "fa"])
@pytest.mark.parametrize("shape", [(8, 2, 6, 5), (8, 3, 6, 6), (8, 12), (1, 8, 2, 6, 6)])
def test_inputs_of_another_shape_are_refused(rule, shape):
    layer = LocallyConnected2d(2, 4, 3, 6)
    if rule is not None:
        apical.attach(layer, rule)
    with pytest.raises(ValueError, match=r"has weights for inputs \[N, 2, 6, 6\], got .* make it with in_channels and"):
        layer(torch.zeros(shape))


def test_weights_that_every_pass_computes_anew_are_refused_at_once():
    layer = nn.utils.parametrizations.weight_norm(LocallyConnected2d(2, 4, 3, 6))
    with pytest.raises(ValueError, match=r"computes weight anew .* call torch.nn.utils.parametrize.remove_param"):
        apical.attach(nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)), "fa")


def test_functions_of_torch_draw_feedback_position_by_position():
    for init, bound in ((nn.init.kaiming_uniform_, (6 / 18) ** 0.5), (nn.init.xavier_uniform_, (6 / 54) ** 0.5)):
        layer = LocallyConnected2d(2, 4, 3, 6)
        feedback = apical.attach(layer, apical.rule("fa", init=init, track=True)).synapses[""].feedback
        assert 0.9 * bound < feedback.abs().max() <= bound
    layer = LocallyConnected2d(2, 4, 3, 6)
    feedback = apical.attach(layer, apical.rule("fa", init=nn.init.orthogonal_, track=True)).synapses[""].feedback
    rows = feedback.flatten(3).transpose(0, 2)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(4).expand(4, 4, 4, 4))


def test_only_a_convolution_can_be_untied():
    with pytest.raises(TypeError, match=r"only an nn\.Conv2d can be untied, got Conv1d"):
        LocallyConnected2d.from_convolution(nn.Conv1d(2, 3, 3), 6)


@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": "same", "groups": 2}, {"stride": 2, "bias": False}])
def test_an_untied_convolution_computes_the_same_and_learns_the_parts_of_its_gradient(options):
    torch.manual_seed(0)
    tied = nn.Conv2d(2, 4, 3, **options).double().eval()
    untied = LocallyConnected2d.from_convolution(tied, 6)
    assert not untied.training
    x, y = X.clone().requires_grad_(), tied(X)
    delta = torch.randn(y.shape, generator=seed(), dtype=torch.float64)
    y.backward(delta)
    (out := untied(x)).backward(delta)
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(untied.weight.grad.sum((1, 2)), tied.weight.grad)
    if tied.bias is not None:
        torch.testing.assert_close(untied.bias.grad.sum((1, 2)), tied.bias.grad)
