"""The training of section 4 against NumPy, and how networks start."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import apical
from apical.papers.nokland2016.training import BATCH, Net, Training, start

RATE = 1e-3


def logistic(a):
    return 1 / (1 + np.exp(-a))


def expected_gradients(rule, x, y, weights, biases, feedback):
    """Summed gradients of a tanh network's cost, from the paper's equations (sections 2 and 3)."""
    h = [x]
    for W, b in zip(weights[:-1], biases[:-1], strict=True):
        h.append(np.tanh(h[-1] @ W.T + b))
    e = logistic(h[-1] @ weights[-1].T + biases[-1]) - y
    slopes = [1 - one**2 for one in h[1:]]
    deltas = [None] * len(slopes) + [e]
    for layer in reversed(range(len(slopes))):
        if rule == "bp":
            deltas[layer] = (deltas[layer + 1] @ weights[layer + 1]) * slopes[layer]
        elif rule == "fa":
            deltas[layer] = (deltas[layer + 1] @ feedback[layer + 1]) * slopes[layer]
        elif rule == "dfa":
            deltas[layer] = (e @ feedback[layer + 1]) * slopes[layer]
    if rule == "ifa":
        deltas[0] = (e @ feedback[1]) * slopes[0]
        for layer in range(1, len(slopes)):
            deltas[layer] = (deltas[layer - 1] @ weights[layer].T) * slopes[layer]
    return [d.T @ below for d, below in zip(deltas, h, strict=True)], [d.sum(0) for d in deltas]


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "ifa"])
def test_two_steps_are_those_of_rmsprop_on_the_papers_update_directions(digits, rule):
    learner = start(Net(3, 12), rule, digits, 3, zero=False)
    training = Training(learner.model, digits, (3,), rate=RATE)
    synapses = list(learner.synapses.values())

    def values(name):
        return [getattr(s, name).detach().double().numpy().copy() for s in synapses]

    weights, biases = values("weight"), values("bias")
    feedback = [None if s.feedback is None else s.feedback.detach().double().numpy() for s in synapses]
    mean_squares = [np.zeros_like(p) for p in (*weights, *biases)]
    draw = torch.Generator().manual_seed(4 * 1_000_003)
    order = torch.randperm(len(digits.train), generator=draw)
    for step in range(2):
        training.learn(step)
        x, labels = digits.train.batch(order[step * BATCH : (step + 1) * BATCH])
        y = np.eye(10)[labels.numpy()]
        per_layer = expected_gradients(rule, x.flatten(1).double().numpy(), y, weights, biases, feedback)
        gradients = [*per_layer[0], *per_layer[1]]
        for parameter, g, mean_square in zip((*weights, *biases), gradients, mean_squares, strict=True):
            mean_square *= 0.99
            mean_square += 0.01 * g**2
            parameter -= RATE * g / (np.sqrt(mean_square) + 1e-8)
    for ours, theirs in zip((*values("weight"), *values("bias")), (*weights, *biases), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        assert np.abs(theirs).max() > 1e-3


def test_it_stops_when_the_running_mean_that_starts_at_one_has_come_to_1e_4(digits):
    training = Training(start(Net(1, 4), "bp", digits, 0).model, digits, (0,), rate=RATE)
    measured = 0
    while not training.done.all():
        training.seen = 1
        last = training.measure()
        measured += 1
    assert measured == int(np.ceil(np.log(1e-4) / np.log(0.75)))
    training.seen = 1
    assert np.isfinite(last["test error"]).all()
    assert np.isnan(training.measure()["test error"]).all()


def test_training_error_is_that_of_the_minibatches_before_they_are_learned(digits):
    training = Training(start(Net(1, 8), "bp", digits, 0).model, digits, (0,), rate=1e-30)
    for step in range(training.per_epoch):
        training.learn(step)
    outputs = training.model(digits.train.batch(torch.arange(len(digits.train)))[0].flatten(1)).argmax(1)
    wrong = 100 * float((outputs != digits.train.labels).double().mean())
    assert training.measure()["train error"] == pytest.approx([wrong])


@pytest.mark.parametrize(
    ("activation", "rule", "zero"),
    [
        ("tanh", "dfa", True),
        ("tanh", "fa", True),
        ("logistic", "dfa", True),
        ("relu", "dfa", False),
        ("tanh", "bp", False),
    ],
)
def test_weights_start_at_zero_or_within_one_over_the_root_of_fan_in(digits, activation, rule, zero):
    learner = start(Net(2, 100, activation), rule, digits, 0)
    for synapse, fan_in in zip(learner.synapses.values(), (64, 100, 100), strict=True):
        for values in (synapse.weight.detach(), synapse.bias.detach()):
            assert float(values.abs().max()) <= fan_in**-0.5
            assert bool((values == 0).all()) is zero
        if not zero:
            assert float(synapse.weight.detach().std()) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
    if rule != "bp":
        feedback = learner.synapses["2"].feedback
        assert feedback is not None
        assert float(feedback.abs().max()) <= 0.1
        assert float(feedback.std()) == pytest.approx(0.1 / 3**0.5, rel=0.1)


def test_fa_and_dfa_are_one_rule_with_one_hidden_layer(digits):
    fa, dfa = (start(Net(1, 20), rule, digits, 1) for rule in ("fa", "dfa"))
    dfa.synapses["2"].feedback = fa.synapses["2"].feedback
    for learner in (fa, dfa):
        training = Training(learner.model, digits, (1,), rate=RATE)
        for step in range(5):
            training.learn(step)
    for name in fa.synapses:
        torch.testing.assert_close(fa.synapses[name].weight, dfa.synapses[name].weight, rtol=1e-5, atol=1e-7)


def test_adversarial_inputs_are_a_step_along_the_sign_of_backpropagations_gradient(digits):
    learner = start(Net(2, 20, "tanh", "ADV"), "dfa", digits, 1, zero=False)
    training = Training(learner.model, digits, (1,), rate=RATE, adversarial=0.08)
    x, y = digits.train.batch(torch.arange(10))
    x = x.flatten(1)
    plain = x.clone().requires_grad_()
    h = plain
    for name in ("0", "2"):
        h = torch.tanh(F.linear(h, learner.synapses[name].weight.detach(), learner.synapses[name].bias.detach()))
    outputs = F.linear(h, learner.synapses["4"].weight.detach(), learner.synapses["4"].bias.detach())
    F.binary_cross_entropy_with_logits(outputs, F.one_hot(y, 10).float(), reduction="sum").backward()
    assert plain.grad is not None
    torch.testing.assert_close(training.worsened(x.clone(), y), x + 0.08 * plain.grad.sign())
    training.learn(0)
    assert learner.rule.name == "dfa"


def test_dropout_is_at_the_input_and_at_every_hidden_layer(digits):
    net = start(Net(2, 4, "tanh", "DO"), "dfa", digits, 0).model
    assert [m.p for m in net if isinstance(m, torch.nn.Dropout)] == [0.1, 0.5, 0.5]


def test_training_goes_on_from_its_state_in_the_middle_of_an_epoch(digits):
    def fresh():
        return Training(start(Net(2, 10), "dfa", digits, 5).model, digits, (5,), rate=RATE, decay=40)

    whole, first, second = fresh(), fresh(), fresh()
    for step in range(30):
        whole.learn(step)
    for step in range(25):
        first.learn(step)
    second.load_state_dict(first.state_dict())
    for step in range(25, 30):
        second.learn(step)
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert second.measure() == whole.measure()


def test_rules_are_attached_by_name(digits):
    assert {rule: start(Net(1, 4), rule, digits, 0).name for rule in ("bp", "fa", "dfa", "ifa")} == {
        rule: rule for rule in ("bp", "fa", "dfa", "ifa")
    }
    assert isinstance(start(Net(1, 4), "fa", digits, 0).rule.plasticity, apical.Fixed)
