"""A phase that never comes is told at the third step."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import apical
from apical.losses import cross_entropy
from apical.step_hooks.everywhere import others
from apical.step_hooks.missed import waiting
from attaching.refusals import loss
from networks import X, Y, plain_chain

PHASED = ("wm", "np", "np-direct", "sg", "sg-direct", "reinforce")


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("rule", PHASED)
def test_a_phase_that_never_comes_is_told_at_the_third_step(rule, local):
    model = plain_chain()
    learner = apical.attach(model, rule, example_input=X)
    optimizer = apical.LocalSGD(learner, 0.1) if local else torch.optim.SGD(model.parameters(), 0.1)
    for step in range(5):
        optimizer.zero_grad()
        loss(model).backward()
        if step == 2:
            with pytest.warns(UserWarning, match=rf"'{rule}' has a phase .* none of three steps.*learner\.adapt\("):
                optimizer.step()
        else:
            optimizer.step()


@pytest.mark.parametrize("rule", PHASED)
def test_a_phase_that_comes_at_the_third_step_or_before_is_fine(rule):
    model = plain_chain()
    learner = apical.attach(model, {"": "fa", "2": rule} if rule == "wm" else rule, example_input=X)
    first, rest = (torch.optim.SGD(chosen.parameters(), 0.1) for chosen in (model[:3], model[3:]))
    for step in range(5):
        cross_entropy(model(X), Y).mean().backward()
        if step == 2:
            learner.adapt(X, Y, cross_entropy)
        for optimizer in (first, rest):
            optimizer.step()
            optimizer.zero_grad()


def test_nothing_is_counted_once_every_phase_has_been():
    gc.collect()
    if waiting():
        pytest.skip("a learner of another test is still there, and waits")
    model = plain_chain()
    learner = apical.attach(model, "np", example_input=X)
    cross_entropy(model(X), Y).mean().backward()
    assert waiting()
    learner.adapt(X, Y, cross_entropy)
    assert not waiting()
    assert not others()


def test_a_phase_leaves_the_hooks_of_all_steps_as_another_thread_walks_through_them():
    model = plain_chain()
    learner = apical.attach(model, "np", example_input=X)
    cross_entropy(model(X), Y).mean().backward()
    walk = iter(_global_optimizer_pre_hooks.values())
    learner.adapt(X, Y, cross_entropy)
    assert len(list(walk)) == len(_global_optimizer_pre_hooks)


def test_a_phase_in_which_nothing_learns_is_not_missed():
    model = nn.Sequential(nn.Linear(4, 3))
    learner = apical.attach(model, "wm", example_input=X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    learner.adapt(X, Y, cross_entropy)
