"""Updates that LocalSGD makes together, as on a GPU, against torch.optim.SGD and against each made when it comes."""

from __future__ import annotations

import itertools

import pytest
import torch

import apical
from networks import convolutions, flat_chain
from optim.test_local_sgd import SETTINGS, Twice, equal, learn, run

RULES = ("fa", "kp", "urfb", "dfa", "kp-direct", "np", "reinforce")
NETWORKS, LIMITS = (flat_chain, convolutions, Twice), (1, 2**26)  # bytes
PAIRS = itertools.product(RULES, SETTINGS)
CASES = [(*pair, NETWORKS[(n + n // 6) % 3], LIMITS[n // 3 % 2]) for n, pair in enumerate(PAIRS)]


@pytest.fixture(autouse=True)
def together(monkeypatch):
    monkeypatch.setattr("apical.optim.updates.pays", lambda parameter: True)


@pytest.mark.parametrize(("rule", "settings", "make", "limit"), CASES)
def test_equal_to_torch_step_for_step(rule, settings, make, limit, monkeypatch):
    monkeypatch.setattr("apical.optim.batched.LIMIT", limit)
    local, _, _ = run(make, rule, lambda learner: apical.LocalSGD(learner, 0.05, **SETTINGS[settings]), schedule=True)
    plain, _, _ = run(
        make,
        rule,
        lambda learner: torch.optim.SGD(learner.model.parameters(), 0.05, **SETTINGS[settings]),
        schedule=True,
    )
    equal(local, plain)


def test_kernels_with_channels_last_move_as_others():
    def last():
        return convolutions().to(memory_format=torch.channels_last)

    nets = [
        run(make, "kp", lambda learner: apical.LocalSGD(learner, 0.05, momentum=0.9))[0]
        for make in (last, convolutions)
    ]
    equal(*nets)


def test_what_waits_is_dropped_with_the_step():
    net, learner, moves = run(flat_chain, "kp", lambda learner: apical.LocalSGD(learner, 0.05, momentum=0.9))
    moves._updates._batched._moves.append(("a parameter", {}, torch.zeros(1)))
    moves._updates.drop()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    moves.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    learn(net, learner, moves)
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_velocities_that_weights_and_feedback_share_are_one_tensor():
    _, learner, moves = run(flat_chain, "kp", lambda learner: apical.LocalSGD(learner, 0.05, momentum=0.9))
    synapse = next(s for s in learner.synapses.values() if s.sends_back)
    weight, feedback = (moves.state[synapse._parameters[name]]["momentum_buffer"] for name in ("weight", "feedback"))
    assert weight is feedback
