import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical

CRITERION = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")  # noqa: E731


def batch(n=9, features=6, classes=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, features, generator=g, dtype=dtype), torch.randint(classes, (n,), generator=g)


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def degrees(a, b):
    a, b = a.detach(), b.detach()
    return float(torch.rad2deg(torch.acos(F.cosine_similarity(a.flatten(1), b.flatten(1)))).mean())


def test_backpropagation_is_perfectly_aligned_with_itself():
    x, y = batch()
    found = apical.alignment(apical.attach(mlp(), "bp", example_input=x), x, y, CRITERION)
    assert list(found) == ["0", "2", "4"]
    assert [a.delta_angle for a in found.values()] == [0, 0, 0]
    assert found["0"].matrix_angle is None  # No signal leaves the first synapse.
    assert (found["2"].matrix_angle, found["2"].relative_error, found["2"].sign_congruence) == (0, 0, 1)
    assert found["4"].correlation == pytest.approx(1)


def test_angles_of_feedback_alignment_against_deltas_written_out():
    x, y = batch()
    net = mlp()
    learner = apical.attach(net, "fa", example_input=x)
    W2, W3 = net[2].weight.detach(), net[4].weight.detach()
    B2, B3 = learner.synapses["2"].feedback, learner.synapses["4"].feedback
    with torch.no_grad():
        h1 = torch.tanh(net[0](x))
        h2 = torch.tanh(net[2](h1))
        e = torch.softmax(net[4](h2), 1) - F.one_hot(y, 4)
        rule2, true2 = e @ B3 * (1 - h2**2), e @ W3 * (1 - h2**2)
        rule1, true1 = rule2 @ B2 * (1 - h1**2), true2 @ W2 * (1 - h1**2)
    found = apical.alignment(learner, x, y, CRITERION)
    assert found["4"].delta_angle == pytest.approx(0, abs=1e-5)
    assert found["2"].delta_angle == pytest.approx(degrees(rule2, true2))
    assert found["0"].delta_angle == pytest.approx(degrees(rule1, true1))
    # Through one layer: the rule's own error by B against the same error by W.
    assert found["4"].layer_angle == pytest.approx(degrees(e @ B3, e @ W3))
    assert found["2"].layer_angle == pytest.approx(degrees(rule2 @ B2, rule2 @ W2))
    assert found["0"].layer_angle is None
    assert found["2"].matrix_angle == pytest.approx(degrees(B2.reshape(1, -1), W2.reshape(1, -1)))


def test_direct_feedback_alignment_against_deltas_written_out():
    x, y = batch()
    net = mlp()
    learner = apical.attach(net, "dfa", example_input=x)
    D1 = learner.synapses["2"].feedback
    with torch.no_grad():
        h1 = torch.tanh(net[0](x))
        h2 = torch.tanh(net[2](h1))
        e = torch.softmax(net[4](h2), 1) - F.one_hot(y, 4)
        true1 = (e @ net[4].weight * (1 - h2**2)) @ net[2].weight * (1 - h1**2)
    found = apical.alignment(learner, x, y, CRITERION)
    assert found["0"].delta_angle == pytest.approx(degrees(e @ D1 * (1 - h1**2), true1))
    assert found["2"].matrix_angle is None  # D [outputs, features] has not the weight's shape.


def test_shallow_has_no_hidden_delta():
    x, y = batch()
    found = apical.alignment(apical.attach(mlp(), "shallow"), x, y, CRITERION)
    assert [found[name].delta_angle for name in found] == [None, None, 0]


@pytest.mark.parametrize("rule", [r for r in apical.rules() if r != "ifa"])
def test_measuring_leaves_no_trace(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4)).double()
    x, y = batch()
    learner = apical.attach(net, rule, example_input=x)
    CRITERION(net(x), y).mean().backward()
    before, hooks = copy.deepcopy(net.state_dict()), [len(module._forward_hooks) for module in net.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    random, drawn = torch.get_rng_state(), learner.generator.get_state()
    apical.alignment(learner, x, y, CRITERION)
    apical.audit(learner, x, y, CRITERION)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(
        p.grad is g if g is None else torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True)
    )
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(drawn, learner.generator.get_state())
    assert [len(module._forward_hooks) for module in net.modules()] == hooks


def test_dropout_is_the_same_in_both_passes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 4)).double()
    x, y = batch()
    found = apical.alignment(apical.attach(net, "bp", example_input=x), x, y, CRITERION)
    assert found["0"].delta_angle == 0


def test_kolen_pollack_aligns_as_it_learns():
    x, y = batch(n=64)
    net = mlp()
    learner = apical.attach(net, "kp", example_input=x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.05)
    start = apical.alignment(learner, x, y, CRITERION)["2"]
    for _ in range(600):
        CRITERION(net(x), y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    end = apical.alignment(learner, x, y, CRITERION)["2"]
    assert start.matrix_angle > 60
    assert end.matrix_angle < 10
    assert end.delta_angle < 10


def test_a_module_used_twice_and_a_dict_output():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            return {"logits": self.head(torch.tanh(self.cell(torch.tanh(self.cell(x))))), "other": 3}

    torch.manual_seed(0)
    x, y = batch()
    net = Recurrent().double()
    learner = apical.attach(net, "bp", example_input=x, output="logits")
    found = apical.alignment(learner, x, y, CRITERION)
    assert found["cell"].delta_angle == 0
    assert not math.isnan(found["cell"].layer_angle)


@pytest.mark.parametrize("rule", ["fa", "dfa", "usf"])
def test_an_activation_function_in_place_changes_no_angle(rule):
    x, y = batch()
    found = []
    for inplace in (False, True):
        net = mlp()
        net[1] = net[3] = nn.ReLU(inplace=inplace)
        learner = apical.attach(net, rule, example_input=x, generator=torch.Generator().manual_seed(1))
        found.append(apical.alignment(learner, x, y, CRITERION))
    assert found[0] == found[1]
    assert found[0]["0"].delta_angle > 1


@pytest.mark.parametrize("rule", apical.rules())
def test_a_frozen_layer_in_the_middle_leaves_the_others_their_angles(rule):
    x, y = batch()
    net = mlp()
    net[2].requires_grad_(False)
    found = apical.alignment(apical.attach(net, rule, example_input=x), x, y, CRITERION)
    assert found["4"].delta_angle == pytest.approx(0, abs=1e-5)
    assert (found["0"].delta_angle is None) == (rule in ("shallow", "reinforce"))


def test_calls_of_different_numbers_of_rows_count_sample_by_sample():
    class TwoViews(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.shared, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)

        def forward(self, x):
            h = torch.tanh(self.below(x))
            a, b = self.shared(h), self.shared(torch.cat([h, -h]))
            self.kept = h, a, b
            return self.head(torch.tanh(a) + torch.tanh(b).view(2, len(x), -1).sum(0))

    torch.manual_seed(0)
    x, y = batch()
    net = TwoViews().double()
    learner = apical.attach(net, "fa", example_input=x)
    found = apical.alignment(learner, x, y, CRITERION)
    with torch.no_grad():
        e = torch.softmax(net(x), 1) - F.one_hot(y, 4)
        _, a, b = net.kept
        W, B = net.shared.weight, learner.synapses["shared"].feedback
        at_a, at_b = (
            (e @ learner.synapses["head"].feedback).repeat(3, 1).mul(1 - torch.cat([a, b]).tanh() ** 2).split([9, 18])
        )
    angles = [degrees(delta @ B, delta @ W) * len(delta) / 27 for delta in (at_a, at_b)]
    assert found["shared"].layer_angle == pytest.approx(sum(angles))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "replicate"},
        {"padding": "same"},
        {"padding": 1, "stride": 2, "dilation": 2},
    ],
)
def test_the_layer_angle_of_a_convolution_is_that_of_signals_at_its_own_input(options):
    kernel = 4 if options["padding"] == "same" else 3
    torch.manual_seed(0)
    middle = nn.Conv2d(3, 4, kernel, **options).double()
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), middle, nn.Flatten(), nn.LazyLinear(4)).double()
    x, y = torch.randn(6, 2, 7, 7, dtype=torch.float64), torch.randint(4, (6,))
    net(x)
    learner = apical.attach(net, "fa", example_input=x)
    with torch.no_grad():
        h = torch.tanh(net[0](x))
        e = torch.softmax(net(x), 1) - F.one_hot(y, 4)
    plain, signals = nn.Conv2d(3, 4, kernel, **options).double(), []
    for weight in (learner.synapses["2"].feedback, middle.weight):
        plain.weight.data.copy_(weight)
        leaf = h.clone().requires_grad_()
        output = plain(leaf)
        signals.append(torch.autograd.grad(output, leaf, (e @ learner.synapses["4"].feedback).view_as(output))[0])
    assert apical.alignment(learner, x, y, CRITERION)["2"].layer_angle == pytest.approx(degrees(*signals))


@pytest.mark.parametrize("size", [(11, 11), (12, 12)])
def test_a_transposed_convolution_of_a_given_output_size(size):
    class Grown(nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.up = nn.Conv2d(2, 3, 3, padding=1), nn.ConvTranspose2d(3, 2, 3, stride=2)
            self.head = nn.Linear(2 * size[0] * size[1], 4)

        def forward(self, x):
            return self.head(self.up(torch.tanh(self.below(x)), output_size=size).flatten(1))

    torch.manual_seed(0)
    net = Grown().double()
    x, y = torch.randn(6, 2, 5, 5, dtype=torch.float64), torch.randint(4, (6,))
    learner = apical.attach(net, "fa", example_input=x)
    with torch.no_grad():
        e = torch.softmax(net(x), 1) - F.one_hot(y, 4)
        delta = (e @ learner.synapses["head"].feedback).view(6, 2, *size)
    signals = [F.conv2d(delta, weight, stride=2) for weight in (learner.synapses["up"].feedback, net.up.weight)]
    found = apical.alignment(learner, x, y, CRITERION)["up"].layer_angle
    assert found == pytest.approx(degrees(*(signal[..., :5, :5] for signal in signals)))


@pytest.mark.parametrize("measure", [apical.alignment, apical.audit])
def test_a_criterion_without_per_sample_losses_is_refused(measure):
    x, y = batch()
    learner = apical.attach(mlp(), "fa")
    with pytest.raises(ValueError, match=r'one loss per sample, shape \[9\], but gave \[\].*reduction="none"'):
        measure(learner, x, y, F.cross_entropy)
    with pytest.raises(ValueError, match=r"but gave \[9, 4\]"):
        measure(learner, x, y, lambda outputs, targets: outputs)


@pytest.mark.parametrize("rule", ["fa", "dfa", "np"])
def test_a_frozen_network_has_angles_of_matrices_and_no_deltas(rule):
    x, y = batch()
    net = mlp().requires_grad_(False)
    learner = apical.attach(net, rule, example_input=x)
    for found in apical.alignment(learner, x, y, CRITERION).values():
        assert (found.delta_angle, found.layer_angle) == (None, None)
    assert found.matrix_angle is not None


@pytest.mark.parametrize("rule", ["fa", "bp", "dfa"])
def test_an_empty_batch_has_no_angles_of_deltas(rule):
    x, y = batch()
    for found in apical.alignment(apical.attach(mlp(), rule, example_input=x), x[:0], y[:0], CRITERION).values():
        assert (found.delta_angle, found.layer_angle) == (None, None)
    assert found.matrix_angle is not None


@pytest.mark.parametrize("measure", [apical.alignment, apical.audit])
def test_a_detached_learner_and_a_model_have_nothing_to_measure(measure):
    x, y = batch()
    net = mlp()
    learner = apical.attach(net, "fa")
    with pytest.raises(TypeError, match=r"what apical\.attach returns, got Sequential; apical\.learner_of\(model\)"):
        measure(net, x, y, CRITERION)
    learner.detach()
    with pytest.raises(ValueError, match=r"learner is detached.*apical\.attach"):
        measure(learner, x, y, CRITERION)
