"""Masks, states, first passes and shared parts of copies are those of single networks."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy
from replicas.common import N, Parts, X, Y, attached, chain, losses, made, same, without_biases


@pytest.mark.parametrize("rule", ["kp", "kp-direct", "usf", "brsf"])
def test_masks_of_copies_are_those_of_the_networks_attached_alone(rule):
    singles, replicas = made(chain), apical.replicate(made(chain), example_input=X[0])
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    apical.attach(replicas, rule, example_input=X, generator=generators, connectivity=0.5)
    for seed, single in enumerate(singles):
        generator = torch.Generator().manual_seed(10 + seed)
        apical.attach(single, rule, example_input=X[0], generator=generator, connectivity=0.5)
    same(replicas.split(), singles)


def test_states_are_those_of_single_networks_and_can_be_put_back():
    singles, others = attached(chain, "kp-direct"), attached(chain, "kp-direct")
    with torch.no_grad():
        for parameter in (p for other in others for p in other.parameters()):
            parameter.add_(1)
    replicas = apical.replicate(singles, example_input=X[0])
    for mine, its in zip(replicas.states(), singles, strict=True):
        assert mine.keys() == its.state_dict().keys()
        assert all(torch.equal(mine[name], its.state_dict()[name]) for name in mine)
    replicas.load_states([other.state_dict() for other in others])
    same(replicas.split(), others)
    with pytest.raises(ValueError, match="state 2 is of a network built otherwise"):
        replicas.load_states([others[0].state_dict(), {}, {}])


@pytest.mark.parametrize("pieces", ["optimizer first", "pass first"])
@pytest.mark.parametrize("rule", ["kp", "matched", "wm", "fa", {"": "kp", "1": "fa"}], ids=str)
def test_copies_whose_first_pass_decides_what_feedback_they_need_are_the_networks_alone(rule, pieces):
    singles = made(chain)
    replicas = apical.replicate(singles)
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    apical.attach(replicas, rule, generator=[copy.deepcopy(own) for own in generators])
    states = []
    for model, x, y in ((replicas, X, None), *zip(singles, X, Y, strict=True)):
        if model is not replicas:
            apical.attach(model, rule, generator=generators[len(states) - 1])
        if pieces == "pass first":
            model(x)
        moves = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            (losses(model(x)).sum() if y is None else cross_entropy(model(x), y).mean()).backward()
            moves.step()
            moves.zero_grad()
        states.append(moves.state_dict()["state"])
    shares = replicas.optimizer_states(states[0])
    torch.testing.assert_close(shares, states[1:])
    torch.testing.assert_close(replicas.optimizer_state(shares), states[0])
    split = replicas.split()
    same(split, singles)
    assert apical.learner_of(split[0]).synapses["1"].feedback is None
    before = copy.deepcopy(replicas.state_dict())
    replicas.load_states([one.state_dict() for one in split])
    torch.testing.assert_close(replicas.state_dict(), before, rtol=0, atol=0)
    same(apical.replicate(split).split(), singles)


def test_networks_of_which_some_have_made_their_first_pass_become_copies():
    singles = made(without_biases)
    for single in singles:
        apical.attach(single, "kp")
    singles[1](X[1])
    replicas = apical.replicate(singles)
    assert apical.learner_of(replicas).synapses["1"].feedback is None
    torch.testing.assert_close(replicas(X), torch.stack([one(x) for one, x in zip(singles, X, strict=True)]))
    same(replicas.split(), singles)


PLANS = st.recursive(
    st.sampled_from(["new", "again", "tied"]), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=5
).map(lambda plan: plan if isinstance(plan, list) else [plan])


@example(["new", "again"], 2, "fa", True)
@example(["new", "tied"], 2, "bp", False)
@given(PLANS, st.integers(1, 3), st.sampled_from(["bp", "fa"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_networks_share_within_themselves_their_copies_share(plan, n, rule, attached_first):
    x = torch.randn(n, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(n)]
    singles = made(lambda: Parts(plan))[:n]
    replicas = None if attached_first else apical.replicate(singles, example_input=x[0])
    for single, x_own, generator in zip(singles, x, generators, strict=True):
        apical.attach(single, rule, example_input=x_own, generator=copy.deepcopy(generator))
    if replicas is None:
        replicas = apical.replicate(singles, example_input=x[0])
    else:
        apical.attach(replicas, rule, example_input=x, generator=generators)
    velocities = []
    for model, inputs in ((replicas, x), *zip(singles, x, strict=True)):
        moves = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            model(inputs).square().sum().backward()
            moves.step()
            moves.zero_grad()
        velocities.append(moves.state_dict()["state"])
    torch.testing.assert_close(replicas.optimizer_states(velocities[0]), velocities[1:])
    split = replicas.split()
    same(split, singles)
    for mine, its, x_own in zip(split, singles, x, strict=True):
        torch.testing.assert_close(mine(x_own), its(x_own))
        for named in (nn.Module.named_modules, nn.Module.named_parameters):
            assert [name for name, _ in named(mine)] == [name for name, _ in named(its)]


def test_a_function_is_called_for_every_copy():
    torch.manual_seed(0)
    replicas = apical.replicate(chain, 2)
    torch.manual_seed(0)
    same(replicas.split(), [chain(), chain()])


def test_dropout_masks_are_independent():
    replicas = apical.replicate(nn.Sequential(nn.Linear(3, 1000), nn.Dropout(0.5)), 2)
    masks = replicas(torch.ones(2, 1, 3)) == 0
    assert 0.4 < (masks[0] ^ masks[1]).double().mean() < 0.6


def test_a_mirror_learns_every_copys_own_weights():
    torch.manual_seed(0)
    singles = [nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)) for _ in range(N)]
    replicas = apical.replicate(singles)
    x, y = torch.randn(N, 64, 20), torch.randint(5, (N, 64))
    learner = apical.attach(replicas, "wm", example_input=x)
    for _ in range(400):
        learner.adapt(x, y, cross_entropy)
    for one, single in zip(replicas.split(), singles, strict=True):
        B = apical.learner_of(one).synapses["2"].feedback.flatten()
        assert F.cosine_similarity(B, single[2].weight.flatten(), dim=0) > 0.98


def test_measures_are_those_of_single_copies():
    replicas = apical.replicate(attached(chain, "fa"), example_input=X[0])
    learner = apical.learner_of(replicas)
    with pytest.raises(ValueError, match="split"):
        apical.alignment(learner, X, Y, cross_entropy)
    with pytest.raises(ValueError, match="split"):
        apical.audit(learner, X, Y, cross_entropy)
    one = replicas.split()[1]
    found = apical.alignment(apical.learner_of(one), X[1], Y[1], cross_entropy)
    assert found["6"].matrix_angle is not None


@pytest.mark.parametrize("rule", ["np", "kp", "reinforce"])
def test_a_single_copy_is_measured_as_the_network_itself(rule):
    (single,) = attached(without_biases, rule)[:1]
    replicas = apical.replicate([single], example_input=X[0])
    for measure in (apical.alignment, apical.audit):
        mine, its = (measure(apical.learner_of(model), X[0], Y[0], cross_entropy) for model in (replicas, single))
        assert mine == its
    cross_entropy(replicas(X[:1])[0], Y[0]).mean().backward()
    apical.learner_of(replicas).adapt(X[:1], Y[:1], cross_entropy)
