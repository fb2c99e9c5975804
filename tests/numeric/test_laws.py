"""Laws that hold exactly over many steps, whatever the data."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from learning import spread
from networks import mlp
from numeric import reference as ref
from numeric.streams import HEBBIAN, NETWORKS, ROUNDING, attach, build, distance, step, stream, weights, with_feedback

LAYERWISE_STORED = ("fa", "frfb", *HEBBIAN)


def set_to_weights(learner):
    with torch.no_grad():
        for synapse in with_feedback(learner).values():
            synapse.feedback.copy_(synapse.weight)


def trajectory(name, rule, prepare=None, steps=20, unattached=False, optimizer=None, **hyperparameters):
    """All parameters of the plain network after some steps, by name."""
    net, shape = build(name)
    names = [n for n, _ in net.named_parameters()]
    if not unattached:
        learner = attach(net, rule, shape, **hyperparameters)
        if prepare:
            prepare(learner)
    optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.02)))(net.parameters())
    for _, batch in zip(range(steps), stream(shape), strict=False):
        step(net, batch, optimizer)
    parameters = dict(net.named_parameters())
    return {n: ref.numbers(parameters[n]) for n in names}


def seeded(learner):
    """The same feedback for every rule."""
    ref.random_feedback(learner, np.random.default_rng(7), sd=0.2)


@pytest.mark.parametrize("name", NETWORKS)
def test_urfb_without_epsilon_is_frfb_is_fa(name):
    one = trajectory(name, "frfb", seeded)
    assert distance(trajectory(name, "urfb", seeded, epsilon=0.0), one) < ROUNDING
    assert distance(trajectory(name, "fa", seeded), one) == 0.0
    assert distance(trajectory(name, "urfb", seeded, epsilon=0.01), one) > 1e3 * ROUNDING


@pytest.mark.parametrize(("name", "rule"), spread(NETWORKS, HEBBIAN))
def test_feedback_that_starts_at_the_weights_gives_backprop(rule, name):
    """R_0 = W_0, epsilon = 1: exactly BP, over many steps, with momentum and decay."""

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.01)

    expected = trajectory(name, None, unattached=True, optimizer=optimizer)
    assert distance(trajectory(name, rule, set_to_weights, optimizer=optimizer), expected) < 1e-8
    assert distance(trajectory(name, "bp", optimizer=optimizer), expected) < 1e-8
    assert distance(trajectory(name, "fa", set_to_weights, optimizer=optimizer), expected) > 1e-4  # B stays behind


def backprop_distance(name, rule, prepare, parts=None):
    """The largest relative error of any gradient against the same network without apical."""
    net, shape = build(name)
    plain = copy.deepcopy(net)
    learner = attach(net, rule, shape)
    prepare(learner)
    batch = next(stream(shape, 5))
    step(net, batch)
    step(plain, batch)
    attached = dict(net.named_parameters())
    for key, buffer in plain.named_buffers():  # running statistics
        assert ref.relative_error(ref.numbers(net.get_buffer(key)), ref.numbers(buffer)) < 1e-12
    expected = {key: ref.numbers(parameter.grad) for key, parameter in plain.named_parameters()}
    floor = ref.floor_of(list(expected.values()))
    return max(ref.relative_error(ref.numbers(attached[k].grad), value, floor) for k, value in expected.items())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", [*LAYERWISE_STORED, "bp"])
def test_feedback_equal_to_the_weights_is_backprop(rule, name):
    prepare = (lambda learner: None) if rule == "bp" else set_to_weights
    assert backprop_distance(name, rule, prepare) < ROUNDING


@pytest.mark.parametrize("name", NETWORKS)
def test_other_feedback_is_not_backprop(name):
    """Planted: one element of one feedback off by a thousandth of its norm."""

    def spoil(learner):
        set_to_weights(learner)
        last = list(with_feedback(learner).values())[-1].feedback
        with torch.no_grad():
            last.view(-1)[0] += 1e-3 * last.norm()

    assert backprop_distance(name, "fa", spoil) > 1e5 * ROUNDING


def test_only_synapses_that_pass_a_signal_have_feedback():
    for name, silent in {"residual": ["stem"], "two eyes": ["left", "right"], "recurrent": ["read"]}.items():
        net, shape = build(name)
        learner = attach(net, "fa", shape)
        assert [n for n, s in learner.synapses.items() if s.feedback is None] == silent


def zeroed(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    return net


def first_moves(rule, bias, steps=6):
    """At which step each weight matrix first moves when all weights and biases start at zero."""
    net = zeroed(mlp((6, 8, 8, 8, 4), bias=bias))
    learner = attach(net, rule, (6,))
    if rule in ref.STORED:
        seeded(learner)
    optimizer = torch.optim.SGD(
        [p for s in learner.synapses.values() for p in (s.weight, s.bias) if p is not None], 0.1
    )
    moved = {}
    biases_moved = []
    for t, batch in zip(range(1, steps + 1), stream((6,)), strict=False):
        step(net, batch, optimizer)
        for name, value in weights(learner).items():
            if value.any():
                moved.setdefault(name, t)
        if t == 1 and bias:
            biases_moved = [bool(s.bias.any()) for s in learner.synapses.values()]
    return [moved.get(name) for name in learner.synapses], biases_moved


@pytest.mark.parametrize("rule", ["dfa", "fa", "ifa"])
def test_from_zero_the_first_layer_moves_first(rule):
    """tanh from zero: h = 0 and f' = 1. Step 1 moves W_1 and all biases; then there is activity everywhere.

    Without biases the activity climbs one layer a step: W_l first moves at step l. ifa cannot start so: the signal of
    a higher hidden layer has to come through W, which is zero and therefore stays zero.
    """
    with_bias, biases = first_moves(rule, bias=True)
    without_bias, _ = first_moves(rule, bias=False)
    if rule == "ifa":
        assert biases == [True, False, False, True]
        assert with_bias == without_bias == [1, None, None, None]
    else:
        assert biases == [True] * 4
        assert with_bias == [1, 2, 2, 2]
        assert without_bias == [1, 2, 3, 4]


def test_from_zero_backprop_only_moves_the_last_bias():
    """The contrast: no signal reaches the hidden layers, ever, and no activity reaches W_L."""
    moves, biases = first_moves("bp", bias=True)
    assert moves == [None] * 4
    assert biases == [False, False, False, True]


def test_zero_start_equals_numpy_step_by_step():
    """DFA from zero over 20 steps, beside the equations."""
    net = zeroed(mlp((6, 8, 7, 4)))
    learner = attach(net, "dfa", (6,))
    feedback = ref.random_feedback(learner, np.random.default_rng(7))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    shapes = [(8, 6), (7, 8), (4, 7)]
    W, b = [np.zeros(s) for s in shapes], [np.zeros(s[0]) for s in shapes]
    for _, (x, y) in zip(range(20), stream((6,)), strict=False):
        step(net, (x, y), optimizer)
        layers = ref.Network([ref.Dense()] * 3, ["tanh"] * 2, "squared", W, b)
        found = ref.gradients("dfa", layers, x.numpy(), y.numpy(), feedback)
        W = [w - 0.1 * g for w, g in zip(W, found.weights, strict=True)]
        b = [c - 0.1 * g for c, g in zip(b, found.biases, strict=True)]
    assert distance(weights(learner), dict(zip(learner.synapses, W, strict=True))) < ROUNDING


def hidden_deltas(net, learner, batch):
    """delta_l summed over the batch is the bias gradient; a batch of one makes it delta_l itself."""
    net.zero_grad()
    step(net, batch)
    return [s.bias.grad.clone() for s in learner.synapses.values()]


def test_ifa_carries_the_first_delta_forward():
    """nokland2016 eq. 9: delta_l = J delta_1 with J = dh_l/dh_1 of the network itself, by forward differentiation."""
    net = mlp((6, 8, 7, 5, 4))
    learner = attach(net, "ifa", (6,))
    (D,) = [b for b in ref.random_feedback(learner, np.random.default_rng(7)) if b is not None]
    plain = mlp((6, 8, 7, 5, 4))
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k in plain.state_dict()})
    x, y = next(stream((6,), rows=1))
    found = hidden_deltas(net, learner, (x, y))

    h1 = plain[:2](x).detach()
    e = (plain(x) - y).detach()
    first = (e @ torch.from_numpy(D)) * (1 - h1.square())
    for k, end in ((0, 2), (1, 4), (2, 6)):
        _, expected = torch.autograd.functional.jvp(plain[2:end], (h1,), (first,))
        assert ref.relative_error(ref.numbers(found[k]), ref.numbers(expected[0])) < ROUNDING
        _, unscaled = torch.autograd.functional.jvp(
            plain[2:end], (h1,), (e @ torch.from_numpy(D),)
        )  # planted: f'(a_1) forgotten
        assert ref.relative_error(ref.numbers(found[k]), ref.numbers(unscaled[0])) > 1e5 * ROUNDING
    assert ref.relative_error(ref.numbers(found[3]), ref.numbers(e[0])) < ROUNDING


def test_linear_ifa_is_dfa_through_the_weights():
    """Without nonlinearities D_l = D_1 W_2^T ... W_l^T; and with one hidden layer ifa is dfa."""
    net, same = (mlp((6, 8, 7, 5, 4), nonlinearity=nn.Identity) for _ in range(2))
    same.load_state_dict(net.state_dict())
    ifa, dfa = attach(net, "ifa", (6,)), attach(same, "dfa", (6,))
    D = ref.random_feedback(ifa, np.random.default_rng(7))[1]
    W = list(weights(ifa).values())
    ref.set_feedback(dfa, [None, D, D @ W[1].T, D @ W[1].T @ W[2].T])
    batch = next(stream((6,)))
    step(net, batch)
    step(same, batch)
    for a, b in zip(ifa.synapses.values(), dfa.synapses.values(), strict=True):
        assert ref.relative_error(ref.numbers(a.weight.grad), ref.numbers(b.weight.grad)) < ROUNDING


def test_dfa_with_the_network_behind_as_feedback_is_backprop_in_a_linear_network():
    """D_l = W_L ... W_{l+1} ([C, n_l]) makes direct feedback exact; kp-direct passes its signal alike."""
    for rule in ("dfa", "kp-direct"):
        net = mlp((6, 8, 7, 5, 4), nonlinearity=nn.Identity)
        plain = copy.deepcopy(net)
        learner = attach(net, rule, (6,))
        W = list(weights(learner).values())
        ref.set_feedback(learner, [None, W[3] @ W[2] @ W[1], W[3] @ W[2], W[3]])
        batch = next(stream((6,)))
        step(net, batch)
        step(plain, batch)
        for synapse, parameter in zip(learner.synapses.values(), list(plain.parameters())[::2], strict=True):
            assert ref.relative_error(ref.numbers(synapse.weight.grad), ref.numbers(parameter.grad)) < ROUNDING


def test_kp_direct_and_the_last_weights_share_a_difference():
    """At the last synapse e^T x is the weights' own step: D_L - W_L obeys the law of kp."""
    net, shape = build("mlp")
    learner = attach(net, "kp-direct", shape)
    last = list(learner.synapses.values())[-1]
    before = ref.numbers(last.weight - last.feedback)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.1)
    for _, batch in zip(range(40), stream(shape), strict=False):
        step(net, batch, optimizer)
    after = ref.numbers(last.weight - last.feedback)
    assert ref.relative_error(after, (1 - 0.05 * 0.1) ** 40 * before) < ROUNDING
    assert ref.relative_error(after, before) > 1e5 * ROUNDING


@pytest.mark.parametrize("name", ["mlp", "cnn", "recurrent", "residual"])
def test_shallow_moves_only_the_last_layer(name):
    net, shape = build(name)
    learner = attach(net, "shallow", shape)
    last = list(learner.synapses)[-1]
    before = weights(learner)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _, batch in zip(range(20), stream(shape), strict=False):
        step(net, batch, optimizer)
    moved = [n for n, w in weights(learner).items() if (w != before[n]).any()]
    assert moved == [last]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("rule", ref.SIGNED)
def test_signs_follow_the_weights(rule, name):
    """After steps large enough to turn many signs, feedback has the signs of now; frsF keeps its magnitudes."""
    net, shape = build(name)
    learner = attach(net, rule, shape)
    with torch.no_grad():
        for synapse in learner.synapses.values():
            synapse.weight *= 0.3  # nearer to zero: more signs turn
    batches = stream(shape)
    step(net, next(batches))
    start = weights(learner)
    magnitude = {n: np.abs(ref.numbers(s.feedback)) for n, s in with_feedback(learner).items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    turned = dict.fromkeys(magnitude, 0)
    for _ in range(20):
        step(net, next(batches), optimizer)  # leaves weights newer than the feedback it used
        step(net, next(batches))
        for n, synapse in with_feedback(learner).items():
            signs = np.sign(ref.numbers(synapse.weight))
            feedback = ref.numbers(synapse.feedback)
            turned[n] += int((signs != np.sign(start[n])).sum())
            np.testing.assert_array_equal(np.sign(feedback), signs)
            if rule == "frsf":
                np.testing.assert_allclose(np.abs(feedback), magnitude[n], rtol=1e-14)
            elif rule == "brsf":
                assert ref.relative_error(np.abs(feedback), magnitude[n]) > 0.1
            else:
                np.testing.assert_allclose(feedback, ref.uniform_signs(ref.numbers(synapse.weight)), rtol=1e-14)
    assert all(turned.values()), turned


def test_sign_of_a_zero_weight_is_zero():
    net, shape = build("mlp")
    learner = attach(net, "usf", shape, scale=1.0)
    with torch.no_grad():
        net[2].weight[:, 3] = 0.0
    step(net, next(stream(shape)))
    assert not learner.synapses["2"].feedback[:, 3].any()
    assert not net[0].weight.grad[3].any()  # no signal reaches the unit whose outgoing weights are gone
