"""Every kind of synapse against the plain layer's own autograd, which knows nothing of feedback weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import apical

# The plain layer pads a copy there, and says so; once a process, so any test here may be the one to see it.
pytestmark = [pytest.mark.filterwarnings("ignore:Using padding='same'")]
QUICK = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MODES = ("zeros", "reflect", "replicate", "circular")
KINDS = {
    nn.Linear: apical.LinearSynapse,
    nn.Conv1d: apical.Conv1dSynapse,
    nn.Conv2d: apical.Conv2dSynapse,
    nn.Conv3d: apical.Conv3dSynapse,
    nn.ConvTranspose1d: apical.ConvTranspose1dSynapse,
    nn.ConvTranspose2d: apical.ConvTranspose2dSynapse,
    nn.ConvTranspose3d: apical.ConvTranspose3dSynapse,
}


def seed(n: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def learn(layer: nn.Module, x: Tensor, cotangent: Tensor | None, *args, **kwargs) -> list[Tensor]:
    """[output, input gradient, weight gradient, bias gradient]"""
    x = x.detach().requires_grad_(True)
    layer.zero_grad()
    y = layer(x, *args, **kwargs)
    y.backward(torch.ones_like(y) if cotangent is None else cotangent)
    grads = [x.grad, layer.weight.grad] + ([] if layer.bias is None else [layer.bias.grad])
    assert all(g is not None for g in grads)
    return [y.detach(), *(g.clone() for g in grads)]


def compare(plain: nn.Module, x: Tensor, *args, tolerance: float = 1e-12, **kwargs) -> None:
    """Outputs bitwise and gradients within tolerance, under bp, and under fa with B = W, for every request of gradients."""
    with torch.no_grad():
        shape = plain(x, *args, **kwargs).shape
    cotangent = torch.randn(shape, generator=seed(9), dtype=torch.float64).to(x.dtype)
    expected = learn(plain, x, cotangent, *args, **kwargs)
    for rule in ("bp", "fa", "kp"):
        layer = copy.deepcopy(plain)
        learner = apical.attach(layer, apical.rule(rule, track=True), generator=seed())
        assert type(layer) is KINDS[type(plain)]
        if rule != "bp":
            learner.synapses[""].feedback = layer.weight.detach().clone()
        got = learn(layer, x, cotangent, *args, **kwargs)
        assert torch.equal(got[0], expected[0]), f"{rule}: the output is not bitwise the plain layer's"
        for name, a, b in zip(("input", "weight", "bias"), got[1:], expected[1:], strict=False):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=name, r=rule: f"{r} {n}: {m}"
            )
        if rule == "kp":
            assert torch.equal(layer._parameters["feedback"].grad, layer.weight.grad)
        with torch.no_grad():
            assert torch.equal(layer(x, *args, **kwargs), plain(x, *args, **kwargs))
        with torch.inference_mode():
            assert torch.equal(layer(x, *args, **kwargs), expected[0])
        only_some(layer, x, cotangent, expected, tolerance, *args, **kwargs)
        assert learner.detach() is layer
        assert type(layer) is type(plain)


def only_some(layer, x, cotangent, expected, tolerance, *args, **kwargs) -> None:
    """Each gradient alone, the others switched off: a kernel that does three products must not mix them up."""
    for wanted in range(1, len(expected)):
        layer.zero_grad()
        leaf = x.detach().requires_grad_(wanted == 1)
        layer.weight.requires_grad_(wanted == 2)
        if layer.bias is not None:
            layer.bias.requires_grad_(wanted == 3)
        layer(leaf, *args, **kwargs).backward(cotangent)
        grads = [leaf.grad, layer.weight.grad, None if layer.bias is None else layer.bias.grad]
        for at, grad in enumerate(grads, start=1):
            if at == wanted:
                torch.testing.assert_close(grad, expected[at], rtol=tolerance, atol=tolerance)
            else:
                assert grad is None
    for parameter in layer.parameters():
        parameter.requires_grad_(True)


# Linear ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 1, 3), (0,), (2, 0), (1,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_with_any_leading_dimensions(leading, bias):
    torch.manual_seed(0)
    compare(nn.Linear(5, 3, bias=bias, dtype=torch.float64), torch.randn(*leading, 5, dtype=torch.float64))


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded", "flipped storage"])
def test_linear_with_inputs_that_are_not_contiguous(view):
    torch.manual_seed(0)
    x = {
        "transposed": torch.randn(5, 4, dtype=torch.float64).t(),
        "strided": torch.randn(8, 10, dtype=torch.float64)[::2, ::2],
        "expanded": torch.randn(1, 5, dtype=torch.float64).expand(4, 5),
        "flipped storage": torch.randn(5, 3, 2, dtype=torch.float64).permute(2, 1, 0),
    }[view]
    plain = nn.Linear(5, 3, dtype=torch.float64)
    expected = learn(plain, x, None)
    apical.attach(plain, "bp")
    for a, b in zip(learn(plain, x, None), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("kind", ["linear", "conv", "transposed", "same", "reflect"])
def test_lower_precision(dtype, tolerance, kind):
    torch.manual_seed(0)
    plain = {
        "linear": lambda: nn.Linear(6, 5),
        "conv": lambda: nn.Conv2d(6, 4, 3, stride=2, groups=2),
        "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, stride=2),
        "same": lambda: nn.Conv2d(6, 4, (2, 3), padding="same"),
        "reflect": lambda: nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    }[kind]().to(dtype)
    x = torch.randn((7, 6) if kind == "linear" else (3, 6, 7, 6)).to(dtype)
    compare(plain, x, tolerance=tolerance)


def test_complex_weights_are_conjugated_as_autograd_does_it_or_refused():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex128), nn.Linear(3, 2, dtype=torch.complex128))
    x = torch.randn(5, 4, dtype=torch.complex128)
    plain(x).abs().sum().backward()
    expected = [p.grad.clone() for p in plain.parameters()]
    plain.zero_grad()
    try:
        apical.attach(plain, "bp")
    except ValueError as error:
        assert "complex" in str(error)  # noqa: PT017
        return
    plain(x).abs().sum().backward()
    for p, g in zip(plain.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)


# Convolutions ---------------------------------------------------------------------------------------------------------


def build(draw, spatial: int) -> tuple[nn.Module, Tensor]:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inward, outward = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    mode = draw(st.sampled_from(MODES))
    stride: tuple[int, ...] = (1,) * spatial
    padding: str | tuple[int, ...] = draw(st.sampled_from(["same", "valid", "number", "number", "number"]))
    if padding == "number":
        padding = tuple(draw(st.integers(0, 3)) for _ in range(spatial))
    if padding != "same":
        stride = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    bias = draw(st.booleans())
    size = tuple(draw(st.integers(1, 9 if spatial < 3 else 6)) for _ in range(spatial))
    batch = draw(st.sampled_from([1, 2, 3, 0, None]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = CONVOLUTIONS[spatial](
        inward,
        outward,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=mode,
        dtype=torch.float64,
    )
    return layer, torch.randn(*(() if batch is None else (batch,)), inward, *size, dtype=torch.float64)


@st.composite
def convolution(draw):
    return build(draw, draw(st.sampled_from([1, 2, 2, 3])))


def passes(layer: nn.Module, x: Tensor, *args, **kwargs) -> bool:
    """Whether the plain layer itself can take x, forward and backward (too small an input, unsupported padding)."""
    try:
        learn(layer, x, None, *args, **kwargs)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


@QUICK
@given(convolution())
def test_convolution_of_any_geometry(case):
    layer, x = case
    assume(passes(layer, x))
    compare(layer, x)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", ["same", "valid", 1, 0])
@pytest.mark.parametrize("kernel", [2, 3])
def test_convolution_with_every_padding(spatial, mode, padding, kernel):
    torch.manual_seed(0)
    layer = CONVOLUTIONS[spatial](2, 4, kernel, padding=padding, padding_mode=mode, groups=2, dtype=torch.float64)
    compare(layer, torch.randn(2, 2, *(5, 4, 6)[:spatial], dtype=torch.float64))


@st.composite
def transposed(draw):
    spatial = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2]))
    inward, outward = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(spatial))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(spatial))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(spatial))
    size = tuple(draw(st.integers(1, 6)) for _ in range(spatial))
    batch = draw(st.sampled_from([1, 2, 0, None]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = TRANSPOSED[spatial](
        inward,
        outward,
        kernel,
        stride=stride,
        padding=padding,
        output_padding=extra,
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
        dtype=torch.float64,
    )
    x = torch.randn(*(() if batch is None else (batch,)), inward, *size, dtype=torch.float64)
    given_size = draw(st.sampled_from([None, "spatial", "whole"]))
    return layer, x, given_size, [draw(st.integers(0, s - 1)) for s in stride]


@QUICK
@given(transposed())
def test_transposed_convolution_of_any_geometry(case):
    layer, x, given_size, more = case
    assume(passes(layer, x))
    kwargs = {}
    if given_size is not None:
        spatial = len(more)
        with torch.no_grad():
            y = layer(x)
        base = [n - p for n, p in zip(y.shape[-spatial:], layer.output_padding, strict=True)]
        wanted = [b + m for b, m in zip(base, more, strict=True)]
        # nn.ConvTranspose takes the size of the space alone, or of the whole output. Unbatched: a test of its own, below.
        lead = list(y.shape[:-spatial]) if given_size == "whole" and y.dim() == spatial + 2 else []
        kwargs = {"output_size": [*lead, *wanted]}
        assume(passes(layer, x, **kwargs))
    compare(layer, x, **kwargs)


def test_output_size_positional_and_torch_size():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    compare(layer, x, [8, 7])
    compare(layer, x, torch.Size([2, 2, 8, 8]))


def test_output_size_of_an_unbatched_input_may_name_the_channels_as_in_the_plain_layer():
    torch.manual_seed(0)
    compare(nn.ConvTranspose1d(2, 3, 3, stride=2).double(), torch.randn(2, 5).double(), output_size=[3, 12])


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 4, 3), lambda: nn.ConvTranspose2d(3, 4, 3)])
def test_convolution_with_inputs_that_are_not_contiguous(make):
    torch.manual_seed(0)
    layer = make().double()
    base = torch.randn(2, 6, 7, 3, dtype=torch.float64)
    for x in (
        base.permute(0, 3, 1, 2),
        base.permute(0, 3, 2, 1),
        base.permute(0, 3, 1, 2)[..., ::2],
        base[0].permute(2, 0, 1),
    ):
        assert not x.is_contiguous()
        expected = learn(copy.deepcopy(layer), x, None)
        attached = copy.deepcopy(layer)
        apical.attach(attached, "bp")
        for a, b in zip(learn(attached, x, None), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_cotangent_that_is_expanded_or_strided():
    torch.manual_seed(0)
    for layer, x in (
        (nn.Linear(4, 3), torch.randn(5, 4)),
        (nn.Linear(4, 3), torch.randn(2, 5, 4)),
        (nn.Conv2d(4, 3, 3), torch.randn(2, 4, 5, 6)),
    ):
        layer, x = layer.double(), x.double()
        y = layer(x)
        for cotangent in (torch.ones((), dtype=torch.float64).expand_as(y), torch.randn(y.mT.shape).double().mT):
            expected = learn(copy.deepcopy(layer), x, cotangent)
            attached = copy.deepcopy(layer)
            apical.attach(attached, "bp")
            for a, b in zip(learn(attached, x, cotangent), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# The three operations by themselves -----------------------------------------------------------------------------------


def adjoint(layer: nn.Module, x: Tensor) -> None:
    """feed_back is the adjoint of x -> transmit(x, B), hebbian that of W -> transmit(x, W). B is not W here."""
    learner = apical.attach(layer, "bp")
    synapse = learner.synapses[""]
    x, geometry = synapse.prepare(x)
    B = torch.randn(synapse.weight.shape, generator=seed(1), dtype=x.dtype)
    y = synapse.transmit(x, B, None, geometry)
    delta = torch.randn(y.shape, generator=seed(2), dtype=x.dtype)
    right = (delta * y).sum()
    back = synapse.feed_back(delta, B, x.shape, geometry)
    product = synapse.hebbian(x, delta, geometry)
    assert back.shape == x.shape
    assert product.shape == B.shape
    torch.testing.assert_close((back * x).sum(), right, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((product * B).sum(), right, rtol=1e-10, atol=1e-10)
    # Linear in every argument, and free of the layer's own weight and bias.
    with torch.no_grad():
        synapse.weight.fill_(float("nan"))
    assert torch.equal(synapse.feed_back(delta, B, x.shape, geometry), back)
    assert torch.equal(synapse.hebbian(x, delta, geometry), product)
    torch.testing.assert_close(synapse.feed_back(delta, 2 * B, x.shape, geometry), 2 * back, rtol=1e-12, atol=1e-12)


@QUICK
@given(convolution())
def test_adjoint_identity_of_convolutions(case):
    layer, x = case
    assume(x.dim() == len(layer.kernel_size) + 2)  # Unbatched inputs get their batch before the three operations.
    assume(passes(layer, x))
    adjoint(layer, x)


@QUICK
@given(transposed())
def test_adjoint_identity_of_transposed_convolutions(case):
    layer, x, _, _ = case
    assume(x.dim() == len(layer.kernel_size) + 2)
    assume(passes(layer, x))
    adjoint(layer, x)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (2, 2, 3)])
def test_adjoint_identity_of_linear(leading):
    torch.manual_seed(0)
    adjoint(nn.Linear(5, 3, dtype=torch.float64), torch.randn(*leading, 5, dtype=torch.float64))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2),
        lambda: nn.Conv2d(2, 3, (2, 3), padding="same"),
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"),
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1),
    ],
)
def test_operations_called_without_geometry_are_the_layer(make):
    """`transmit(x, W, b)` is the layer itself (module docstring), and `feed_back` answers at x's own shape."""
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    expected = layer(x)
    cotangent = torch.randn(expected.shape, generator=seed(3), dtype=torch.float64)
    _, at_input, at_weight, _ = learn(layer, x, cotangent)
    synapse = apical.attach(layer, "bp").synapses[""]
    torch.testing.assert_close(synapse.transmit(x, synapse.weight, synapse.bias), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(synapse.hebbian(x, cotangent), at_weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        synapse.feed_back(cotangent, synapse.weight.detach(), x.shape), at_input, rtol=1e-12, atol=1e-12
    )


def test_feedback_is_read_and_weights_are_not():
    """The signal at the input is delta B of a B that has nothing to do with W, in every kind."""
    torch.manual_seed(0)
    cases = [(nn.Linear(4, 3), (5, 4))]
    cases += [(CONVOLUTIONS[n](4, 6, 3, stride=2, padding=1, groups=2), (2, 4, *(5, 6, 7)[:n])) for n in (1, 2, 3)]
    cases += [(TRANSPOSED[n](4, 6, 3, stride=2, padding=1, groups=2), (2, 4, *(3, 4, 5)[:n])) for n in (1, 2, 3)]
    for plain, shape in cases:
        plain = plain.double()
        x = torch.randn(shape, dtype=torch.float64)
        B = torch.randn(plain.weight.shape, dtype=torch.float64)
        y = plain(x)
        cotangent = torch.randn(y.shape, dtype=torch.float64)
        expected = learn(plain, x, cotangent)
        other = copy.deepcopy(plain)
        with torch.no_grad():
            other.weight.copy_(B)
        signal = learn(other, x, cotangent)[1]
        synapse = apical.attach(plain, apical.rule("fa", track=True)).synapses[""]
        synapse.feedback = B
        got = learn(plain, x, cotangent)
        torch.testing.assert_close(got[1], signal, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[2], expected[2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[3], expected[3], rtol=1e-12, atol=1e-12)


def test_feedback_set_from_the_weights_is_an_alias_that_audit_finds():
    """As with any buffer of PyTorch's; audit is what tells backpropagation in disguise."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    learner = apical.attach(net, "fa", example_input=x)
    synapse = learner.synapses["2"]
    criterion = lambda outputs, targets: (outputs - targets).square().sum(1)  # noqa: E731
    synapse.feedback = synapse.weight.detach().clone()
    assert apical.audit(learner, x, torch.zeros(5, 2), criterion).transported["2"] == "nothing"
    synapse.feedback = synapse.weight
    assert apical.audit(learner, x, torch.zeros(5, 2), criterion).transported["2"] == "weights"


def test_feedback_that_is_set_takes_the_dtype_of_the_weights():
    layer = nn.Linear(4, 3)
    synapse = apical.attach(layer, apical.rule("fa", track=True)).synapses[""]
    synapse.feedback = torch.ones(3, 4, dtype=torch.float64)
    assert synapse.feedback.dtype == layer.state_dict()["feedback"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"\[3, 4\].*\[4, 3\]"):
        synapse.feedback = torch.ones(4, 3)


def test_the_layer_is_called_by_keyword_as_before():
    torch.manual_seed(0)
    for layer, x in ((nn.Linear(4, 3), torch.randn(2, 4)), (nn.Conv1d(4, 3, 2), torch.randn(2, 4, 5))):
        expected = layer(input=x)
        apical.attach(layer, "fa")
        assert torch.equal(layer(input=x), expected)
        with torch.no_grad():
            assert torch.equal(layer(input=x), expected)


def test_backward_twice_over_a_kept_graph_gives_the_gradient_twice():
    torch.manual_seed(0)
    for layer, x in ((nn.Linear(4, 3), torch.randn(2, 4)), (nn.Conv2d(4, 3, 2), torch.randn(2, 4, 5, 5))):
        apical.attach(layer, "fa")
        loss = layer(x).pow(2).sum()
        loss.backward(retain_graph=True)
        once = layer.weight.grad.clone()
        loss.backward()
        assert torch.equal(layer.weight.grad, 2 * once)


def test_a_double_backward_is_refused_not_wrong():
    x = torch.randn(3, 4, requires_grad=True)
    layer = nn.Linear(4, 3)
    apical.attach(layer, apical.rule("fa", track=True))
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)


def test_changing_the_input_in_place_after_the_call_is_noticed():
    layer = nn.Linear(4, 4)
    apical.attach(layer, "fa")
    x = torch.randn(2, 4)
    y = layer(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_fans_are_those_of_torch_init_and_swapped_where_the_kernel_is_transposed():
    for layer in (nn.Linear(5, 3), nn.Conv2d(4, 6, (2, 3), groups=2), nn.Conv1d(4, 6, 3), nn.Conv3d(2, 3, 2)):
        expected = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        apical.attach(layer, "bp")
        assert layer.fans() == expected
    transposed_layer = nn.ConvTranspose2d(4, 6, 3)
    apical.attach(transposed_layer, "bp")
    assert transposed_layer.fans() == (4 * 9, 6 * 9)


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_feedback_moves_with_the_model_to_another_dtype(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    learner = apical.attach(net, rule, example_input=torch.randn(2, 4), generator=seed())
    B = learner.synapses["2"].feedback.detach().clone()
    net.double()
    assert learner.synapses["2"].feedback.dtype == torch.float64
    assert torch.equal(learner.synapses["2"].feedback, B.double())
    net(torch.randn(6, 4, dtype=torch.float64)).pow(2).sum().backward()
    assert net[0].weight.grad.dtype == torch.float64
    assert float(net[0].weight.grad.abs().sum()) > 0
