"""Weights that are tied or parted after attach: feedback that learns with them follows, and masks are one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from learning import attach, step
from networks import Words, X, seed


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


@pytest.mark.parametrize("optimizer", ["sgd", "local", "local, made before"])
@pytest.mark.parametrize("rule", ["kp", "urfb", "matched"])
@pytest.mark.parametrize("when", ["before", "after", "to the first", "tied and parted"])
def test_feedback_of_tied_weights_follows_them(when, rule, optimizer):
    """W - B shrinks by the weight decay alone, as that of any other layer."""
    net, x = deep(), X.double()
    if when == "to the first":
        net[0] = nn.Linear(6, 6).double()
        x = torch.cat([x, x[:, :2]], 1)
    first, second = (0, 2) if when == "to the first" else (2, 4)
    if when in ("before", "to the first"):
        net[second].weight = net[first].weight
    learner = attach(net, apical.rule(rule, epsilon=1.0), x)
    options = {"lr": 0.1, "momentum": 0.5, "weight_decay": 1e-2}
    moves = apical.LocalSGD(learner, **options) if optimizer == "local, made before" else None
    if when not in ("before", "to the first"):
        net[second].weight = net[first].weight
    if when == "tied and parted":
        net[second].weight = nn.Parameter(net[second].weight.detach().clone())
    assert (net[second].feedback is net[first].feedback) == (when != "tied and parted")
    if moves is None:
        moves = (
            torch.optim.SGD(net.parameters(), **options) if optimizer == "sgd" else apical.LocalSGD(learner, **options)
        )
    else:
        held = {id(p) for group in moves.param_groups for p in group["params"]}
        if new := [p for p in net.parameters() if id(p) not in held]:
            moves.add_param_group({"params": new})
    plain = net[6].weight.detach() - net[6].feedback.detach()
    tied = [net[i].weight.detach() - net[i].feedback.detach() for i in (first, second)]
    for _ in range(20):
        step(net, moves, x)
    share = (net[6].weight - net[6].feedback).norm() / plain.norm()
    for i, one in zip((first, second), tied, strict=True):
        torch.testing.assert_close(net[i].weight - net[i].feedback, one * share, rtol=1e-9, atol=1e-12)


def test_weights_are_tied_in_a_copy_and_a_pickle_as_in_the_network_itself():
    net = deep()
    attach(net, "kp", X.double())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin[4].weight = twin[2].weight
        assert twin[4].feedback is twin[2].feedback
        again = copy.deepcopy(twin)
        assert again[4].feedback is again[2].feedback
        again[4].weight = nn.Parameter(torch.ones(6, 6).double())
        assert again[4].feedback is not again[2].feedback
    assert net[4].feedback is not net[2].feedback


def test_tied_after_attach_they_have_one_mask():
    net = deep()
    learner = apical.attach(net, "kp", connectivity=0.5, generator=seed())
    net[4].weight = net[2].weight
    step(net, None, X.double())
    assert net[4].weight_mask is net[2].weight_mask
    assert net[4].feedback_mask is net[2].feedback_mask
    assert len(learner.feedback_parameters()) == 2
    assert not net[4].weight[net[4].weight_mask == 0].any()


@pytest.mark.parametrize("sparse", ["2", "4"])
def test_tied_to_a_dense_layer_absent_connections_stay_absent(sparse):
    net = deep()
    apical.attach(net, "fa", connectivity={sparse: 0.5}, generator=seed())
    mask = net[int(sparse)].weight_mask
    net[4].weight = net[2].weight
    step(net, None, X.double())
    assert net[2].weight_mask is net[4].weight_mask is mask
    assert not net[2].weight[mask == 0].any()


@pytest.mark.parametrize("optimizer", ["sgd", "local"])
@pytest.mark.parametrize("way", ["to the embedding", "to the head"])
@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_an_embedding_tied_after_attach_learns_as_one_tied_before(rule, way, optimizer):
    word, networks = torch.arange(9), [Words(), Words()]
    networks[1].tie(way)
    learners = [apical.attach(net, rule, example_input=word, generator=seed()) for net in networks]
    make = (
        (lambda net, learner: apical.LocalSGD(learner, 0.1))
        if optimizer == "local"
        else lambda net, learner: torch.optim.SGD(net.parameters(), 0.1)
    )
    moves = make(networks[0], learners[0])
    networks[0].tie(way)
    for name, synapse in learners[1].synapses.items():
        if synapse.feedback is not None:
            synapse.feedback = learners[0].synapses[name].feedback
    networks[1].load_state_dict(networks[0].state_dict())
    for net, moving in zip(networks, [moves, make(networks[1], learners[1])], strict=True):
        for _ in range(3):
            moving.zero_grad()
            F.cross_entropy(net(word), word).backward()
            moving.step()
    for mine, its in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(mine, its)
