"""Feedback that is set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from networks import X, plain_chain


def test_feedback_of_the_wrong_shape_or_kind():
    model = plain_chain()
    learner = apical.attach(model, "fa", example_input=X)
    synapse = learner.synapses["2"]
    before = synapse.feedback.clone()
    for wrong in (torch.ones(6, 5), torch.ones(36), torch.ones(1, 6, 6), torch.ones(())):
        with pytest.raises(ValueError, match=r"'2' has shape \[6, 6\], got \["):
            synapse.feedback = wrong
    with pytest.raises((TypeError, ValueError), match="feedback"):
        synapse.feedback = None
    with pytest.raises((TypeError, ValueError), match="feedback"):
        synapse.feedback = 3.0
    with pytest.raises(ValueError, match="'0' has no feedback weights to set"):
        learner.synapses["0"].feedback = torch.ones(6, 4)
    assert torch.equal(synapse.feedback, before)
    assert list(model.state_dict()) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
        "2.feedback",
        "4.weight",
        "4.bias",
        "4.feedback",
    ]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("bp", "computed from the weights"),
        ("usf", "computed from the weights"),
        ("frsf", "computed"),
        ("shallow", "no feedback"),
    ],
)
def test_feedback_that_is_not_stored_cant_be_set(rule, says):
    learner = apical.attach(plain_chain(), rule, example_input=X)
    with pytest.raises(ValueError, match=says):
        learner.synapses["2"].feedback = torch.ones(6, 6)


def test_feedback_set_as_a_parameter_stays_what_its_plasticity_makes_of_it():
    for rule in ("fa", "kp"):
        model = plain_chain()
        learner = apical.attach(model, rule, example_input=X)
        count = len(list(model.parameters()))
        value = nn.Parameter(torch.full((6, 6), 0.5))
        learner.synapses["2"].feedback = value
        assert torch.equal(learner.synapses["2"].feedback, value)
        assert learner.synapses["2"].feedback is not value
        assert len(list(model.parameters())) == count


@pytest.mark.parametrize("rule", ["fa", "frfb", "kp", "wm", "np"])
@pytest.mark.parametrize("how", ["set", "set as a parameter", "loaded", "loaded and assigned"])
def test_feedback_set_to_the_weights_own_memory_does_not_follow_them(rule, how):
    model = plain_chain()
    synapse = apical.attach(model, rule, example_input=X).synapses["2"]
    if how.startswith("loaded"):
        state = {**model.state_dict(), "2.feedback": synapse.weight.detach()}
        model.load_state_dict(state, assign="assigned" in how)
    else:
        synapse.feedback = synapse.weight if "parameter" in how else synapse.weight.detach()
    before = synapse.feedback.detach().clone()
    assert torch.equal(before, synapse.weight)
    with torch.no_grad():
        synapse.weight.add_(1.0)
    assert torch.equal(synapse.feedback, before)


def test_feedback_of_a_block_set_to_weights_does_not_follow_them():
    model = plain_chain()
    learner = apical.attach(model, "dfa", example_input=X, at=["3"])
    learner.blocks["3"].feedback = model[4].weight.detach()
    before = model[4].weight.detach().clone()
    model(X).sum().backward()
    with torch.no_grad():
        model[4].weight.add_(1.0)
    assert torch.equal(learner.blocks["3"].feedback, before)


def test_synapses_that_are_set_to_one_tensor_have_feedback_each():
    learner = apical.attach(plain_chain(), "fa", example_input=X)
    one, other = learner.synapses["2"], apical.attach(plain_chain(), "fa", example_input=X).synapses["2"]
    one.feedback = value = torch.ones(6, 6)
    other.feedback = one.feedback
    one.feedback.zero_(), value.fill_(3.0)
    assert bool((other.feedback == 1).all())
