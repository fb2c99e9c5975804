"""What holds for every kind of synapse: adjoints, what is read, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor, nn

import apical
from networks import seed
from synapses.plain import CONVOLUTIONS, QUICK, TRANSPOSED, convolution, learn, passes, transposed

# The plain layer pads a copy there, and says so; once a process, so any test here may be the one to see it.
pytestmark = [pytest.mark.filterwarnings("ignore:Using padding='same'")]


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


def test_feedback_set_from_the_weights_is_a_copy_and_an_audit_finds_an_alias():
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    x = torch.randn(5, 4)
    learner = apical.attach(net, "fa", example_input=x)
    synapse = learner.synapses["2"]
    criterion = lambda outputs, targets: (outputs - targets).square().sum(1)  # noqa: E731
    synapse.feedback = synapse.weight.detach().clone()
    assert apical.audit(learner, x, torch.zeros(5, 2), criterion).transported["2"] == "nothing"
    synapse.feedback = synapse.weight
    assert apical.audit(learner, x, torch.zeros(5, 2), criterion).transported["2"] == "nothing"
    synapse._buffers["feedback"] = synapse.weight.detach()
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


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (2, 2, 3, 4), (1, 4), (5, 4)])
def test_the_output_may_be_changed_in_place_as_a_plain_layers(shape):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 1100), nn.ReLU(inplace=True), nn.Linear(1100, 6), nn.Linear(6, 2))
    x = torch.randn(shape)
    plain = copy.deepcopy(net)
    apical.attach(net, "bp")
    for model in (plain, net):
        y = model[:3](x)
        y /= 2
        y.unsqueeze(0).transpose(0, -1)[0] += 1
        (model[3](y) ** 2).sum().backward()
    for (name, mine), theirs in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


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
