"""Every rule's gradients on multilayer perceptrons, against NumPy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import apical
from numeric import reference as ref

TOLERANCE = 1e-9
ACTIVATIONS = {"tanh": nn.Tanh, "logistic": nn.Sigmoid, "relu": nn.ReLU, "identity": nn.Identity}
CRITERIA = {
    "softmax": lambda a, y: functional.cross_entropy(a, y.argmax(dim=1), reduction="none"),
    "bce": lambda a, y: functional.binary_cross_entropy_with_logits(a, y, reduction="none").sum(dim=1),
    "squared": lambda a, y: 0.5 * (a - y).square().sum(dim=1),
}


def build(widths, nonlinearities, bias, seed):
    """Linear, f, Linear, f, ..., Linear in float64."""
    torch.manual_seed(seed)
    layers = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(n_in, n_out, bias=bias))
        if i < len(nonlinearities):
            layers.append(ACTIVATIONS[nonlinearities[i]]())
    net = nn.Sequential(*layers).double()
    with torch.no_grad():  # wide enough to reach the curved part of f
        for parameter in net.parameters():
            parameter.normal_(std=0.8)
    return net


def targets(loss, rows, columns, rng):
    if loss == "softmax":
        return np.eye(columns)[rng.integers(columns, size=rows)]
    return rng.random((rows, columns)) if loss == "bce" else rng.normal(size=(rows, columns))


def attach(net, rule, x, seed=0, **hyperparameters):
    chosen = apical.rule(rule, **hyperparameters) if hyperparameters else rule
    return apical.attach(net, chosen, example_input=x, generator=torch.Generator().manual_seed(seed))


def dense(count):
    return [ref.Dense() for _ in range(count)]


class Trial:
    """One network under one rule, with everything that NumPy needs to repeat it."""

    def __init__(self, rule, widths, nonlinearities, loss, *, bias=True, rows=5, seed=0, **hyperparameters):
        self.rng = np.random.default_rng(seed)
        self.rule, self.loss, self.nonlinearities = rule, loss, nonlinearities
        self.epsilon = hyperparameters.get("epsilon", 1.0)
        self.x = self.rng.normal(size=(rows, widths[0]))
        self.y = targets(loss, rows, widths[-1], self.rng)
        self.net = build(widths, nonlinearities, bias, seed)
        self.learner = attach(self.net, rule, torch.from_numpy(self.x), seed, **hyperparameters)
        self.stored = ref.random_feedback(self.learner, self.rng) if rule in ref.STORED else None

    def backward(self):
        output = self.net(torch.from_numpy(self.x))
        value = CRITERIA[self.loss](output, torch.from_numpy(self.y)).mean()
        value.backward()
        return value.item()

    def copy(self):
        return ref.copy_of(self.learner, dense(len(self.learner.synapses)), self.nonlinearities, self.loss)

    def expected(self, feedback=None):
        """To be asked for after `backward`: brsF has then drawn what it used."""
        if feedback is None:
            feedback = self.stored or ([None] * 99 if self.rule in ("bp", "shallow") else ref.feedback_of(self.learner))
        return ref.gradients(self.rule, self.copy(), self.x, self.y, feedback, self.epsilon)

    def worst(self, feedback=None):
        return max(ref.errors(self.learner, self.expected(feedback)).values())


@st.composite
def settings_of_a_network(draw):
    depth = draw(st.integers(1, 5))
    widths = [draw(st.integers(1, 9)) for _ in range(depth)] + [draw(st.integers(2, 6))]
    nonlinearities = [draw(st.sampled_from(sorted(ACTIVATIONS))) for _ in range(depth - 1)]
    return {
        "widths": widths,
        "nonlinearities": nonlinearities,
        "loss": draw(st.sampled_from(sorted(CRITERIA))),
        "bias": draw(st.booleans()),
        "rows": draw(st.integers(1, 7)),
        "seed": draw(st.integers(0, 10**6)),
    }


DEEP = {"widths": [6, 5, 5, 5, 4], "nonlinearities": ["tanh", "logistic", "tanh"], "loss": "softmax"}


@settings(deadline=None, max_examples=50)
@given(settings_of_a_network(), st.integers(0, 10**6))
def test_reference_bp_is_the_slope_of_the_loss(setting, seed):
    """The reference itself, against central differences of its own forward pass along a random direction."""
    rng = np.random.default_rng(seed)
    smooth = ["tanh" if f == "relu" else f for f in setting["nonlinearities"]]
    widths = setting["widths"]
    shapes = list(zip(widths[1:], widths, strict=False))
    weights = [0.5 * rng.normal(size=s) for s in shapes]
    biases = [0.5 * rng.normal(size=s[0]) for s in shapes]
    x = rng.normal(size=(setting["rows"], widths[0]))
    y = targets(setting["loss"], setting["rows"], widths[-1], rng)

    def at(step):
        moved = [w + step * v for w, v in zip(weights, directions, strict=True)]
        shifted = [b + step * v for b, v in zip(biases, shifts, strict=True)]
        return ref.Network(dense(len(shapes)), smooth, setting["loss"], moved, shifted)

    directions = [rng.normal(size=w.shape) for w in weights]
    shifts = [rng.normal(size=b.shape) for b in biases]
    found = ref.gradients("bp", at(0.0), x, y, [None] * len(shapes))
    slope = sum(np.vdot(g, v) for g, v in zip(found.weights + found.biases, directions + shifts, strict=True))
    h = 1e-4
    difference = (
        8 * (at(h).mean_loss(x, y) - at(-h).mean_loss(x, y)) - (at(2 * h).mean_loss(x, y) - at(-2 * h).mean_loss(x, y))
    ) / (12 * h)
    assert slope == pytest.approx(difference, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("rule", ref.RULES)
@settings(deadline=None, max_examples=20)
@given(setting=settings_of_a_network())
def test_gradients_equal_numpy(rule, setting):
    trial = Trial(rule, **setting)
    value = trial.backward()
    assert value == pytest.approx(trial.copy().mean_loss(trial.x, trial.y), rel=1e-12, abs=1e-14)
    found = ref.errors(trial.learner, trial.expected())
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("rule", ref.RULES)
def test_synapses_are_named_and_shaped_as_the_layers(rule):
    trial = Trial(rule, **DEEP)
    trial.backward()
    assert list(trial.learner.synapses) == ["0", "2", "4", "6"]
    assert all(trial.learner.synapses[name] is trial.net.get_submodule(name) for name in trial.learner.synapses)
    feedback = ref.feedback_of(trial.learner)
    assert feedback[0] is None
    if rule in ref.LAYERWISE and rule != "bp":
        assert [b.shape for b in feedback[1:]] == [(5, 5), (5, 5), (4, 5)]
    elif rule in ref.DIRECT:
        assert [b.shape for b in feedback[1:]] == [(4, 5)] * 3
    elif rule == "ifa":
        assert feedback[1].shape == (4, 5)
        assert feedback[2:] == [None, None]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("rule", ref.STORED)
def test_drawn_feedback_is_no_copy_of_the_weights(rule, zeros):
    """What attach draws is not zero, repeats with its generator (not the global seed), and is uncorrelated with W."""

    def drawn(feedback_seed, global_seed):
        net = build([60, 50, 50, 50], ["tanh"] * 2, True, 0)
        if zeros:
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.zero_()
        torch.manual_seed(global_seed)
        learner = attach(net, rule, torch.zeros(2, 60, dtype=torch.float64), feedback_seed)
        return [b for b in ref.feedback_of(learner) if b is not None], ref.copy_of(learner, dense(3), [], "bce").weights

    (first, weights), (again, _), (other, _) = drawn(0, 0), drawn(0, 1), drawn(1, 0)
    for b, same, different in zip(first, again, other, strict=True):
        assert b.dtype == np.float64
        np.testing.assert_array_equal(b, same)
        assert np.linalg.norm(b) > 0
        for w in weights[1:] if not zeros else []:
            assert abs(np.corrcoef(b.ravel(), w.ravel())[0, 1]) < 0.1  # sd of the correlation: 0.02
        assert abs(np.corrcoef(b.ravel(), different.ravel())[0, 1]) < 0.1
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.1 for a, b in itertools.pairwise(first))


@pytest.mark.parametrize("scale", [1.0, 0.3, None])
def test_usf_is_the_scaled_sign(scale):
    hyperparameters = {} if scale is None else {"scale": scale}
    trial = Trial("usf", **DEEP, **hyperparameters)
    trial.backward()
    expected = [None, *(ref.uniform_signs(w, scale) for w in trial.copy().weights[1:])]
    for found, value in zip(ref.feedback_of(trial.learner)[1:], expected[1:], strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-12)
    assert trial.worst(expected) < TOLERANCE


@pytest.mark.parametrize("rule", ["brsf", "frsf"])
def test_random_magnitudes_carry_the_signs_of_w(rule):
    trial = Trial(rule, **DEEP)
    trial.backward()
    first = ref.feedback_of(trial.learner)[1:]
    trial.backward()
    second = ref.feedback_of(trial.learner)[1:]
    for a, b, w in zip(first, second, trial.copy().weights[1:], strict=True):
        np.testing.assert_array_equal(np.sign(a), np.sign(w))
        np.testing.assert_array_equal(np.sign(b), np.sign(w))
        assert np.unique(np.abs(a)).size == a.size  # magnitudes are random, not uniform
        assert (ref.relative_error(b, a) > 0.1) == (rule == "brsf")


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.5, 1.0])
def test_urfb_scales_the_feedback_step(epsilon):
    trial = Trial("urfb", **DEEP, epsilon=epsilon)
    trial.backward()
    assert trial.worst() < TOLERANCE


@pytest.mark.parametrize("rule", [r for r in ref.RULES if r != "brsf"])  # brsF: another draw for each of the batches
def test_gradients_accumulate_over_batches(rule):
    trial = Trial(rule, **DEEP)
    trial.backward()
    first = {n: p.grad.clone() for n, p in trial.net.named_parameters() if p.grad is not None}
    trial.x = trial.rng.normal(size=trial.x.shape)
    trial.backward()
    second = trial.expected()
    for name, parameter in trial.net.named_parameters():
        if parameter.grad is not None:
            parameter.grad -= first[name]
    assert max(ref.errors(trial.learner, second).values()) < TOLERANCE


@pytest.mark.parametrize("rule", ["fa", "kp", "usf", "shallow"])
def test_leading_dimensions_count_as_batch(rule):
    """[N, T, F] through Linear is [N T, F]."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(4, 3, 6)), rng.normal(size=(4, 3, 4))
    net = build([6, 5, 7, 4], ["tanh", "tanh"], True, 3)
    learner = attach(net, rule, torch.from_numpy(x))
    if rule in ref.STORED:
        ref.random_feedback(learner, rng)
    (0.5 * (net(torch.from_numpy(x)) - torch.from_numpy(y)).square().sum(dim=2)).mean().backward()
    copy = ref.copy_of(learner, dense(3), ["tanh", "tanh"], "squared")
    expected = ref.gradients(rule, copy, x.reshape(12, 6), y.reshape(12, 4), ref.feedback_of(learner))
    assert max(ref.errors(learner, expected).values()) < TOLERANCE


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("rule", [r for r in ref.RULES if r not in ("brsf", "frsf")])
def test_twenty_steps_of_training_equal_numpy(rule, nesterov):
    """SGD with momentum and decay, written out; kp, matched, urfb and kp-direct step their feedback alike."""
    lr, momentum, decay = 0.05, 0.9, 0.01
    trial = Trial(rule, **DEEP)
    optimizer = torch.optim.SGD(trial.net.parameters(), lr=lr, momentum=momentum, weight_decay=decay, nesterov=nesterov)
    copy = trial.copy()
    feedback = list(trial.stored or [None] * len(copy.weights))
    state = {"weights": list(copy.weights), "biases": list(copy.biases), "feedback": feedback}
    velocity = {}
    for _ in range(20):
        trial.x = trial.rng.normal(size=trial.x.shape)
        trial.y = targets(trial.loss, *trial.y.shape, trial.rng)
        net = ref.Network(copy.synapses, copy.nonlinearities, copy.loss, state["weights"], state["biases"])
        used = [ref.uniform_signs(w) for w in net.weights] if rule == "usf" else state["feedback"]
        found = ref.gradients(rule, net, trial.x, trial.y, used)
        for kind, values in state.items():
            for i, gradient in enumerate(getattr(found, kind)):
                if gradient is not None:
                    gradient = gradient + decay * values[i]
                    velocity[kind, i] = momentum * velocity.get((kind, i), 0.0) + gradient
                    values[i] = values[i] - lr * (
                        gradient + momentum * velocity[kind, i] if nesterov else velocity[kind, i]
                    )
        trial.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = trial.copy()
    for found, value in zip(after.weights + after.biases, state["weights"] + state["biases"], strict=True):
        if rule != "shallow" or found is after.weights[-1] or found is after.biases[-1]:
            assert ref.relative_error(found, value) < TOLERANCE
    if rule in ref.STORED:
        for found, value in zip(ref.feedback_of(trial.learner), state["feedback"], strict=True):
            assert value is None or ref.relative_error(found, value) < TOLERANCE


@pytest.mark.parametrize("rule", ["usf", "kp", "urfb"])
def test_large_layers(rule):
    """Matrices of 18 MB, which an implementation may treat in its own way; gradients kept from before stay as they were."""
    hyperparameters = {"epsilon": 0.5} if rule == "urfb" else {}
    widths = [3, 1500, 1500, 2]
    trial = Trial(rule, widths, ["tanh", "logistic"], "squared", rows=2, **hyperparameters)
    optimizer = torch.optim.SGD(trial.net.parameters(), lr=1e-4)
    kept, copies = [], []
    for step in range(3):
        trial.stored = None if trial.stored is None else ref.feedback_of(trial.learner)
        trial.backward()
        assert trial.worst() < TOLERANCE
        if step == 0:
            kept = [p.grad for p in trial.net.parameters() if p.grad is not None]
            copies = [g.clone() for g in kept]
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


FAULTS = {
    "flipped": lambda b: -b,
    "scaled": lambda b: 1.001 * b,
    "transposed": lambda b: b.T.copy() if b.shape[0] == b.shape[1] else b[::-1].copy(),
    "one element": lambda b: b + 0.01 * np.eye(*b.shape) * (np.arange(b.shape[0]) == 0)[:, None],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rule", ref.STORED)
def test_planted_feedback_is_caught(rule, fault):
    """Layer-wise, direct, indirect, trained: the network computes with other feedback than NumPy."""
    trial = Trial(rule, **DEEP)
    spoilt = [None if b is None else FAULTS[fault](b) for b in trial.stored]
    ref.set_feedback(trial.learner, spoilt)
    trial.backward()
    assert trial.worst() > 1e5 * TOLERANCE
    assert trial.worst(spoilt) < TOLERANCE  # and the same run passes once NumPy is told


@pytest.mark.parametrize("rule", ref.SIGNED)
def test_planted_sign_is_caught(rule):
    trial = Trial(rule, **DEEP)
    trial.backward()
    true = ref.feedback_of(trial.learner)
    for fault in FAULTS.values():
        assert trial.worst([None if b is None else fault(b) for b in true]) > 1e5 * TOLERANCE


@pytest.mark.parametrize("rule", ref.TRAINED)
def test_planted_feedback_gradient_is_caught(rule):
    trial = Trial(rule, **DEEP)
    trial.backward()
    last = list(trial.learner.synapses.values())[-1]
    last.feedback.grad *= 1.001
    assert trial.worst() > 1e5 * TOLERANCE


@pytest.mark.parametrize("rule", [r for r in ref.RULES if r not in ("bp", "shallow")])
def test_no_rule_passes_for_another(rule):
    """The gradients that NumPy gives for other pathways are far from this rule's."""
    trial = Trial(rule, **DEEP)
    trial.backward()
    first = next(iter(trial.learner.synapses.values())).weight.grad.numpy()
    zeros = [None, *(np.ones((4, w.shape[1])) for w in trial.copy().weights[1:])]
    for other, feedback in {"bp": zeros, "dfa": zeros, "ifa": zeros}.items():
        expected = ref.gradients(other, trial.copy(), trial.x, trial.y, feedback).weights[0]
        assert ref.relative_error(first, expected) > 1e5 * TOLERANCE
