"""The law of W - B under every optimizer that has one."""

import pytest
import torch

from numeric import reference as ref
from numeric.streams import HEBBIAN, ROUNDING, attach, build, distance, step, stream, weights, with_feedback


def gaps(learner):
    return {name: ref.numbers(s.weight - s.feedback) for name, s in with_feedback(learner).items()}


def kp_distance(rule, name, factor, steps=40, **options):
    """How far W - B is from (product of factor(lr)) (W_0 - B_0) after a run of SGD with a falling rate."""
    net, shape = build(name)
    learner = attach(net, rule, shape)
    assert len(with_feedback(learner)) == len(learner.synapses) - 1
    before, started = gaps(learner), weights(learner)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, **options)
    expected = 1.0
    for k, batch in zip(range(steps), stream(shape), strict=False):
        optimizer.param_groups[0]["lr"] = lr = 0.05 / (1 + k // 10)
        expected *= factor(lr)
        step(net, batch, optimizer)
    assert distance(weights(learner), started) > 0.01  # it did learn
    return distance(gaps(learner), {n: expected * d for n, d in before.items()})


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("rule", HEBBIAN)
def test_difference_decays_exactly(rule, name, decay):
    """W_t - B_t = (1 - eta lambda)^t (W_0 - B_0); without decay (URFB of amit2019) it stays as it was."""
    assert kp_distance(rule, name, lambda lr: 1 - lr * decay, weight_decay=decay) < ROUNDING


def test_the_decay_law_can_fail():
    """Planted: a law with another decay, and momentum without its recurrence."""
    assert kp_distance("kp", "mlp", lambda lr: 1 - lr * 0.101, weight_decay=0.1) > 1e5 * ROUNDING
    assert kp_distance("kp", "mlp", lambda lr: 1 - lr * 0.1, weight_decay=0.1, momentum=0.9) > 1e5 * ROUNDING


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("rule", HEBBIAN)
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_recurrence(rule, name, momentum):
    """d_{t+1} - (1 + m - eta lambda) d_t + m d_{t-1} = 0 with L2 inside SGD; d_1 = (1 - eta lambda) d_0."""
    lr, decay = 0.02, 0.1
    net, shape = build(name)
    learner = attach(net, rule, shape)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    history = [gaps(learner)]
    for _, batch in zip(range(30), stream(shape), strict=False):
        step(net, batch, optimizer)
        history.append(gaps(learner))
    assert distance(history[1], {n: (1 - lr * decay) * d for n, d in history[0].items()}) < ROUNDING
    for before, now, after in zip(history, history[1:], history[2:], strict=False):
        expected = {n: (1 + momentum - lr * decay) * now[n] - momentum * before[n] for n in now}
        assert distance(after, expected) < ROUNDING
        wrong = {n: (1 - lr * decay) * now[n] for n in now}  # the law without momentum
        assert distance(after, wrong) > 1e5 * ROUNDING


OPTIMIZERS = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True),
    "dampened": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1, dampening=0.5),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
}


def difference_after(optimizer, data_seed, rule="kp", steps=30):
    net, shape = build("mlp")
    learner = attach(net, rule, shape)
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    for _, batch in zip(range(steps), stream(shape, data_seed), strict=False):
        step(net, batch, optimizer)
    return gaps(learner), weights(learner)


@pytest.mark.parametrize("rule", HEBBIAN)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_difference_is_blind_to_the_data(optimizer, rule):
    """The same optimizer for W and B: two streams of data, one and the same W - B."""
    (one, trained_on_one), (two, trained_on_two) = (difference_after(optimizer, seed, rule) for seed in (1, 2))
    assert distance(trained_on_two, trained_on_one) > 0.01
    assert distance(two, one) < ROUNDING


def test_fixed_feedback_does_see_the_data():
    """Planted: under fa the difference depends on the data at once."""
    (one, _), (two, _) = (difference_after("nesterov", seed, "fa") for seed in (1, 2))
    assert distance(two, one) > 1e5 * ROUNDING


def test_nesterov_recurrence():
    """u_{t+1} = m u_t + lambda d_t, d_{t+1} = d_t - eta (lambda d_t + m u_{t+1}): one scalar for all elements."""
    net, shape = build("mlp")
    learner = attach(net, "kp", shape)
    before = gaps(learner)
    optimizer = OPTIMIZERS["nesterov"](net.parameters())
    d, u = 1.0, 0.0
    for _, batch in zip(range(30), stream(shape), strict=False):
        step(net, batch, optimizer)
        u = 0.9 * u + 0.1 * d
        d = d - 0.02 * (0.1 * d + 0.9 * u)
    assert distance(gaps(learner), {n: d * gap for n, gap in before.items()}) < ROUNDING


def test_adamw_decays_the_difference():
    """Decoupled decay: equal gradients give equal Adam steps, so d_t = (1 - eta lambda)^t d_0."""
    before, _ = difference_after("adamw", 1, steps=0)
    after, _ = difference_after("adamw", 1, steps=30)
    assert distance(after, {n: (1 - 0.001) ** 30 * gap for n, gap in before.items()}) < ROUNDING


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_urfb_keeps_epsilon_w_minus_r(name, epsilon):
    """R_t - epsilon W_t is what it was: URFB at 1, FRFB at 0."""
    net, shape = build(name)
    learner = attach(net, "urfb", shape, epsilon=epsilon)

    def invariant(factor):
        return {n: ref.numbers(s.feedback - factor * s.weight) for n, s in with_feedback(learner).items()}

    before, planted = invariant(epsilon), invariant(epsilon + 0.01)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
    for _, batch in zip(range(30), stream(shape), strict=False):
        step(net, batch, optimizer)
    assert distance(invariant(epsilon), before) < ROUNDING
    assert distance(invariant(epsilon + 0.01), planted) > 1e5 * ROUNDING
