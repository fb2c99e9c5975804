"""Trainable feedback that no optimizer holds is refused at the first step."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import apical
from attaching.refusals import loss
from networks import X, plain_chain


@pytest.mark.parametrize(
    ("rule", "options"), [("kp", {}), ("urfb", {}), ("kp-direct", {}), ("kp-direct", {"at": ["1", "3"]})]
)
def test_an_optimizer_made_before_the_feedback_is_refused_at_its_first_step(rule, options):
    model = plain_chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = apical.attach(model, rule, example_input=X, **options)
    weights = [p.detach().clone() for p in model.parameters()]
    loss(model).backward()
    with pytest.raises(RuntimeError, match=rf"feedback of .*'{rule}'.*after apical\.attach.*add_param_group"):
        optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    # The way out that the message names.
    optimizer.add_param_group({"params": learner.feedback_parameters()})
    before = [p.detach().clone() for p in learner.feedback_parameters()]
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(learner.feedback_parameters(), before, strict=True))


def test_feedback_with_an_optimizer_of_its_own_is_fine():
    model = plain_chain()
    forward = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = apical.attach(model, "kp", example_input=X)
    backward = torch.optim.SGD(learner.feedback_parameters(), lr=0.1)
    for _ in range(3):
        forward.zero_grad(), backward.zero_grad()
        loss(model).backward()
        forward.step(), backward.step()


def test_optimizers_of_other_models_and_made_after_are_left_alone():
    model, other = plain_chain(), plain_chain()
    apical.attach(model, "kp")
    optimizer, foreign = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(2):
        loss(model).backward(), loss(other).backward()
        optimizer.step(), foreign.step()
    last = torch.optim.SGD(model[4].parameters(), lr=0.1)
    loss(model).backward()
    last.step()


def test_an_optimizer_of_the_weights_after_detaching_is_fine():
    model = plain_chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apical.attach(model, "kp").detach()
    loss(model).backward()
    optimizer.step()


def test_the_guard_sees_a_deep_copy_and_an_unpickled_model():
    model = plain_chain()
    apical.attach(model, "kp", example_input=X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        optimizer = torch.optim.SGD(apical.learner_of(twin).forward_parameters(), lr=0.1)
        loss(twin).backward()
        with pytest.raises(RuntimeError, match="no optimizer holds the feedback"):
            optimizer.step()
