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
