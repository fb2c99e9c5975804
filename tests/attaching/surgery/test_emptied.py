"""Feedback and masks whose values are gone, as after nn.Module.to_empty."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import apical
from comparison import equal
from learning import TRAINED, step
from networks import X, plain_chain, seed


def feedback(learner) -> dict:
    found = {name: synapse.feedback for name, synapse in learner.synapses.items()}
    return {name: None if B is None else B.detach().clone() for name, B in found.items()}


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa", "frsf", "wm", "bp", "usf"])
@pytest.mark.parametrize("how", ["to_empty", "zeros", "meta"])
def test_feedback_that_was_emptied_is_noticed_and_drawn_anew_or_loaded(rule, how):
    net = plain_chain()
    learner = apical.attach(net, rule, example_input=X, generator=seed())
    state = copy.deepcopy(net.state_dict())
    before = feedback(learner)
    if how == "zeros":
        net._apply(torch.zeros_like)
    else:
        (net.to("meta") if how == "meta" else net).to_empty(device="cpu")
    for module in net:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    if rule in ("bp", "usf"):
        step(net)  # Feedback is computed from the weights.
        return
    with pytest.raises(
        RuntimeError, match=r"(?s)feedback of .*'4' was emptied.*load a state dict.*learner\.refresh\(\)"
    ):
        net(X)
    twin = copy.deepcopy(net)
    learner.refresh()
    step(net)
    for name, synapse in learner.synapses.items():
        assert (synapse.feedback is None) == (before[name] is None)
        if synapse.feedback is not None:
            assert 0 < float(synapse.feedback.detach().norm()) < 100
    plain = {name: tensor for name, tensor in state.items() if name.endswith(("weight", "bias"))}
    twin.load_state_dict(plain, strict=False)
    with pytest.raises(RuntimeError, match="was emptied"):
        twin(X)
    twin.load_state_dict(state)
    step(twin)
    equal(
        {n: t for n, t in feedback(apical.learner_of(twin)).items() if t is not None and rule not in TRAINED},
        {n: t for n, t in before.items() if t is not None and rule not in TRAINED},
    )


def test_masks_that_were_emptied_are_drawn_anew():
    net = plain_chain()
    learner = apical.attach(net, "bp", connectivity=0.5, generator=seed())
    net.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="emptied"):
        net(X)
    for module in net:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    learner.refresh()
    step(net)
    assert set(net[2].weight_mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("move", ["double", "half", "bfloat16", "share_memory", "to"])
def test_moves_and_casts_empty_nothing(move):
    net = plain_chain()
    learner = apical.attach(net, "kp", connectivity=0.5, generator=seed())
    net.to("cpu", torch.float64) if move == "to" else getattr(net, move)()
    assert not learner.circuit.emptied
