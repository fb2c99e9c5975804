"""Convolutions of every geometry, against explicitly unfolded matrix products in NumPy.

The network is conv -> tanh -> conv -> flatten -> linear; either convolution may be a transposed one.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import apical
from numeric import reference as ref

TOLERANCE = 1e-9
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
OUTPUTS = 3
RULES = ("fa", "kp", "usf", "dfa", "kp-direct", "frsf", "bp")


class Geometry:
    """One convolution's options, as torch and as NumPy take them."""

    def __init__(self, channels, kernel, *, transposed=False, groups=1, bias=True, mode="zeros", **options):
        self.dims = len(kernel)
        ones = (1,) * self.dims
        self.channels, self.kernel, self.transposed = channels, tuple(kernel), transposed
        self.groups, self.bias, self.mode = groups, bias, mode
        self.stride = tuple(options.get("stride", ones))
        self.dilation = tuple(options.get("dilation", ones))
        self.padding = options.get("padding", (0,) * self.dims)
        self.output_padding = tuple(options.get("output_padding", (0,) * self.dims))

    def __repr__(self):
        return f"Geometry({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"

    @property
    def extent(self):
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]

    @property
    def sides(self):
        """(before, after) for each dimension; an odd amount of 'same' padding has its larger half behind."""
        if self.padding == "same":
            return tuple(((n - 1) // 2, n - 1 - (n - 1) // 2) for n in self.extent)
        amounts = (0,) * self.dims if self.padding == "valid" else self.padding
        return tuple((p, p) for p in amounts)

    def smallest_input(self, output):
        """The smallest input that gives at least `output` positions."""
        sizes = []
        for i, m in enumerate(output):
            (before, after), s, extent = self.sides[i], self.stride[i], self.extent[i]
            if self.transposed:
                missing = m - extent - self.output_padding[i] + before + after
                sizes.append(max(1, -(-missing // s) + 1))
            else:
                floor = {"zeros": 1, "replicate": 1, "circular": max(before, after), "reflect": max(before, after) + 1}
                sizes.append(max(1, floor[self.mode], (m - 1) * s + extent - before - after))
        return sizes

    def module(self):
        common = {"stride": self.stride, "groups": self.groups, "bias": self.bias, "dilation": self.dilation}
        if self.transposed:
            kind, common["output_padding"] = TRANSPOSED[self.dims], self.output_padding
        else:
            kind, common["padding_mode"] = CONV[self.dims], self.mode
        return kind(*self.channels, self.kernel, padding=self.padding, **common)

    def synapse(self):
        if self.transposed:
            return ref.TransposedConvolution(
                self.kernel, self.stride, self.padding, self.dilation, self.output_padding, self.groups
            )
        return ref.Convolution(self.kernel, self.stride, self.sides, self.dilation, self.groups, self.mode)


@st.composite
def geometries(draw, dims, channels, transposed):
    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    largest = 3 if dims < 3 else 2
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if all(c % g == 0 for c in channels)]))
    common = {"transposed": transposed, "groups": groups, "bias": draw(st.booleans())}
    stride, dilation, padding = each(1, largest), each(1, 2), each(0, 2)
    if transposed:
        output_padding = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )  # torch: smaller than stride or dilation
        return Geometry(
            channels,
            each(1, largest),
            stride=stride,
            dilation=dilation,
            padding=padding,
            output_padding=output_padding,
            **common,
        )
    common["mode"] = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    kind = draw(st.sampled_from(["numbers", "numbers", "same", "valid"]))
    if kind == "same":  # odd kernels; torch warns about a copy for even ones, see the case below
        kernel = tuple(draw(st.sampled_from([1, 3])) for _ in range(dims))
        return Geometry(channels, kernel, dilation=dilation, padding="same", **common)
    return Geometry(
        channels,
        each(1, largest),
        stride=stride,
        dilation=dilation,
        padding=padding if kind == "numbers" else "valid",
        **common,
    )


@st.composite
def networks(draw):
    """Two convolutions that fit one after the other, and the size of the input."""
    dims = draw(st.sampled_from([1, 1, 2, 2, 3]))
    channels = [draw(st.sampled_from([2, 4])) for _ in range(3)]
    first = draw(geometries(dims, channels[:2], draw(st.booleans())))
    second = draw(geometries(dims, channels[1:], draw(st.booleans())))
    extra = draw(st.integers(0, 2 if dims < 3 else 1))
    size = [n + extra for n in first.smallest_input(second.smallest_input([1] * dims))]
    return first, second, size, draw(st.integers(0, 10**6))


class Trial:
    def __init__(self, rule, first, second, size, seed=0, rows=2):
        self.rule = rule
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.x = self.rng.normal(size=(rows, first.channels[0], *size))
        self.y = self.rng.normal(size=(rows, OUTPUTS))
        convolutions = [first.module().double(), nn.Tanh(), second.module().double(), nn.Flatten()]
        features = nn.Sequential(*convolutions)(torch.from_numpy(self.x)).shape[1]
        self.net = nn.Sequential(*convolutions, nn.Linear(features, OUTPUTS).double())
        self.learner = apical.attach(self.net, rule, example_input=torch.from_numpy(self.x))
        self.synapses = [first.synapse(), second.synapse(), ref.Dense()]
        if rule in ref.STORED:
            ref.random_feedback(self.learner, self.rng)

    def backward(self, memory_format=torch.contiguous_format):
        self.output = self.net(torch.from_numpy(self.x).contiguous(memory_format=memory_format))
        (0.5 * (self.output - torch.from_numpy(self.y)).square().sum(dim=1)).mean().backward()

    def copy(self):
        return ref.copy_of(self.learner, self.synapses, ["tanh", "identity"], "squared")

    def feedback(self):
        if self.rule == "usf":
            return [None, *(ref.uniform_signs(w) for w in self.copy().weights[1:])]
        return [None] * 3 if self.rule == "bp" else ref.feedback_of(self.learner)

    def errors(self, feedback=None):
        expected = ref.gradients(self.rule, self.copy(), self.x, self.y, feedback or self.feedback())
        found = ref.errors(self.learner, expected)
        found["output"] = ref.relative_error(ref.numbers(self.output), self.copy().run(self.x)[1][-1])
        return found

    def check(self):
        self.backward()
        found = self.errors()
        assert max(found.values()) < TOLERANCE, found
        return self


def plain(dims, kernel=2, **options):
    return Geometry((2, 2), (kernel,) * dims, **options)


@settings(deadline=None, max_examples=60)
@given(networks())
def test_reference_operations_are_adjoint(setting):
    """<delta, x * W> = <feed_back(delta, W), x> = <hebbian(x, delta), W>, for any x, delta, W."""
    first, second, size, seed = setting
    rng = np.random.default_rng(seed)
    for geometry, shape in ((first, size), (second, second.smallest_input([1] * second.dims))):
        synapse = geometry.synapse()
        x = rng.normal(size=(2, geometry.channels[0], *shape))
        weight = rng.normal(size=tuple(geometry.module().weight.shape))
        y = synapse.transmit(x, weight)
        delta = rng.normal(size=y.shape)
        product = np.vdot(delta, y)
        assert np.vdot(synapse.feed_back(delta, weight, x.shape), x) == pytest.approx(product, rel=1e-10, abs=1e-10)
        assert np.vdot(synapse.hebbian(x, delta), weight) == pytest.approx(product, rel=1e-10, abs=1e-10)


@settings(deadline=None, max_examples=60)
@given(networks())
def test_reference_transmits_as_torch_does(setting):
    """The plain layers of torch, no apical: the unfolding reads the geometry as torch does."""
    first, _, size, seed = setting
    x = np.random.default_rng(seed).normal(size=(2, first.channels[0], *size))
    module = first.module().double()
    bias = None if module.bias is None else ref.numbers(module.bias)
    expected = first.synapse().transmit(x, ref.numbers(module.weight), bias)
    assert ref.relative_error(ref.numbers(module(torch.from_numpy(x))), expected) < TOLERANCE


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=25)
@given(setting=networks())
def test_gradients_equal_numpy(rule, setting):
    Trial(rule, *setting).check()


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("rule", ["fa", "kp-direct"])
def test_padding_modes(rule, dims, mode):
    """Every mode with uneven padding per dimension, where hypothesis may not have been."""
    padding = (2, 1, 0)[:dims]
    second = plain(dims, 3, padding=padding, mode=mode, stride=(2, 1, 1)[:dims], groups=2)
    Trial(rule, plain(dims, padding=padding, mode=mode), second, (5, 4, 4)[:dims]).check()


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_same_padding_with_even_kernels(dims, mode):
    """An odd amount of padding: the larger half comes behind."""
    kernel = (4, 2, 2)[:dims]
    options = {"padding": "same", "mode": mode, "dilation": (1, 3, 1)[:dims]}
    Trial("fa", Geometry((2, 2), kernel, **options), Geometry((2, 2), kernel, **options), (5, 5, 3)[:dims]).check()


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("stride", "dilation", "output_padding"), [(3, 1, 2), (1, 3, 2), (2, 2, 1), (2, 3, 2)])
def test_output_padding(dims, stride, dilation, output_padding):
    """Also at least the stride, which torch allows where the dilation is larger."""
    options = {k: (v,) * dims for k, v in (("stride", stride), ("dilation", dilation), ("padding", 1))}
    options["output_padding"] = (output_padding,) + (0,) * (dims - 1)
    deconvolution = Geometry((2, 2), (2,) * dims, transposed=True, **options)
    Trial("fa", plain(dims, 1), deconvolution, (3, 2, 2)[:dims]).check()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rule", ["fa", "kp", "usf"])
def test_depthwise_with_a_multiplier(rule, transposed):
    first, second = (Geometry(c, (3, 2), groups=2, transposed=transposed) for c in ((2, 4), (4, 6)))
    Trial(rule, first, second, (6, 5)).check()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_without_a_batch_dimension(rule, transposed):
    """[C, *size] is a batch of one."""
    options = {"transposed": transposed, "stride": (2, 1), "padding": (1, 0)}
    geometries = [Geometry((2, 2), (2, 3), **options) for _ in range(2)]
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 8))
    net = nn.Sequential(geometries[0].module(), nn.Tanh(), geometries[1].module()).double()
    learner = apical.attach(net, rule, example_input=torch.from_numpy(x))
    feedback = ref.random_feedback(learner, rng)
    output = net(torch.from_numpy(x))
    y = rng.normal(size=tuple(output.shape))
    (0.5 * (output - torch.from_numpy(y)).square()).sum().backward()
    copy = ref.copy_of(learner, [g.synapse() for g in geometries], ["tanh"], "squared")
    expected = ref.gradients(rule, copy, x[None], y[None], feedback)
    assert max(ref.errors(learner, expected).values()) < TOLERANCE


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("rule", ["kp", "dfa", "kp-direct"])
def test_channels_last_gives_the_same(rule, dims, transposed):
    """Another layout in memory of weights and activities, the same numbers."""
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    second = plain(dims, 3, groups=2, transposed=transposed)
    trial = Trial(rule, plain(dims, padding=(1,) * dims), second, (5, 4, 4)[:dims])
    trial.net.to(memory_format=form)
    trial.backward(form)
    found = trial.errors()
    assert max(found.values()) < TOLERANCE, found


def _mirrored(b):
    return b[(slice(None),) * 2 + (slice(None, None, -1),) * (b.ndim - 2)].copy()


FAULTS = {
    "flipped": lambda b: -b,
    "scaled": lambda b: 1.001 * b,
    "transposed": lambda b: b.swapaxes(0, 1).copy(),
    "kernel mirrored": _mirrored,
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_planted_feedback_is_caught(rule, fault, dims, transposed):
    trial = Trial(rule, plain(dims), plain(dims, transposed=transposed), (4, 4, 4)[:dims]).check()
    trial.net.zero_grad()
    true = trial.feedback()
    ref.set_feedback(trial.learner, [None, FAULTS[fault](true[1]), None])
    trial.backward()
    assert trial.errors(true)["0.weight"] > 1e5 * TOLERANCE
    assert max(trial.errors().values()) < TOLERANCE


@pytest.mark.parametrize(
    "fault",
    [
        {"stride": (2, 1)},
        {"dilation": (2, 1)},
        {"padding": ((0, 2), (1, 1))},
        {"groups": 1},
        {"mode": "circular"},
    ],
    ids=lambda f: next(iter(f)),
)
def test_planted_geometry_is_caught(fault):
    """NumPy told of another geometry: shapes clash or numbers differ."""
    trial = Trial("fa", plain(2), plain(2, 3, padding=(1, 1), groups=2), (5, 5)).check()
    true = trial.synapses[1]
    trial.synapses[1] = ref.Convolution(**{**vars(true), **fault})
    try:
        found = max(trial.errors().values())
    except ValueError:
        return
    assert found > 1e5 * TOLERANCE


def test_planted_feedback_gradient_is_caught():
    trial = Trial("kp", plain(2), plain(2, transposed=True), (4, 4)).check()
    trial.net[2].feedback.grad = trial.net[2].feedback.grad.flip(-1)
    assert max(trial.errors().values()) > 1e5 * TOLERANCE
