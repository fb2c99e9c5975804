"""Layers whose weights are computed anew after attach: parametrizations, the older functions, pruning."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import apical
from learning import attach, step
from networks import X, plain_chain, seed


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa", "reinforce"])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_layer_that_was_parametrized_comes_back_plain_and_parametrized(rule, how):
    net = plain_chain()
    learner = attach(net, rule)
    getattr(nn.utils.parametrizations, how)(net[2])
    with pytest.raises(RuntimeError, match="weight of '2' is a parameter no longer"):
        net(X)
    with pytest.raises(ValueError, match=r"(?s)2: .*computes weight anew.*remove_parametrizations\(layer, 'weight'\)"):
        learner.refresh()
    learner.detach()
    net.eval()
    before = net(X)
    before.sum().backward()
    assert net[2].parametrizations.weight.original0.grad is not None if how == "weight_norm" else True
    twin = copy.deepcopy(net)
    torch.testing.assert_close(twin(X), before)
    nn.utils.parametrize.remove_parametrizations(net[2], "weight")
    assert type(net[2]) is nn.Linear
    torch.testing.assert_close(net(X), before)
    attach(net, rule)
    step(net)


def test_a_parametrization_taken_off_again_leaves_a_synapse():
    net = plain_chain()
    learner = attach(net, "kp")
    nn.utils.parametrizations.weight_norm(net[2])
    nn.utils.parametrize.remove_parametrizations(net[2], "weight")
    B = net[2].feedback
    step(net)
    learner.refresh()
    assert net[2].feedback is B
    step(net)


@pytest.mark.parametrize("connectivity", [None, 0.5])
@pytest.mark.parametrize("how", ["prune", "weight_norm", "spectral_norm"])
def test_the_older_functions_are_refused_and_come_back_from_detach(how, connectivity):
    net = plain_chain()
    learner = apical.attach(net, "kp", connectivity=connectivity, generator=seed())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch would rather have parametrizations.
        if how == "prune":
            prune.l1_unstructured(net[2], "weight", 0.5)
        else:
            getattr(nn.utils, how)(net[2])
    with pytest.raises(RuntimeError, match=r"weight of '2' is a parameter no longer.*prune\.remove"):
        net(X)
    learner.detach()
    step(net)
    assert type(net[2]) is nn.Linear
    if how == "prune":
        assert float((net[2].weight == 0).float().mean()) >= 0.5
        assert net[2].weight_orig.grad is not None


@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_what_is_pruned_and_made_permanent_goes_on_learning(rule):
    net = plain_chain()
    learner = attach(net, rule)
    prune.l1_unstructured(net[2], "weight", 0.5)
    prune.remove(net[2], "weight")
    step(net)
    assert learner.synapses["2"] is net[2]
    assert net[2].weight.grad is not None
