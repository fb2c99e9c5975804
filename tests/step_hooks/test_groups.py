"""Feedback goes by the options of its weights' group, and what keeps it from being alike to them is told."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import apical
from attaching.refusals import loss
from networks import X, plain_chain


def by_name(model, **options):
    """Groups as a list of names makes them: feedback comes to lie with the biases."""
    named = dict(model.named_parameters())
    return [
        {"params": [p for name, p in named.items() if name.endswith("weight")], **options},
        {"params": [p for name, p in named.items() if not name.endswith("weight")]},
    ]


def distances(model) -> list[torch.Tensor]:
    return [(model[i].weight - model[i].feedback).norm().detach() for i in (2, 4)]


def steps(model, optimizer, count) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


OPTIMIZERS = {
    "SGD": lambda learner, groups: torch.optim.SGD(groups, 0.1),
    "momentum": lambda learner, groups: torch.optim.SGD(groups, 0.1, 0.9),
    "Adam": lambda learner, groups: torch.optim.Adam(groups, 0.01),
    "LocalSGD": lambda learner, groups: apical.LocalSGD(learner, 0.1, params=groups),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"lr": 0.02}])
@pytest.mark.parametrize("rule", ["kp", "matched", "urfb"])
def test_feedback_in_a_group_of_others_goes_by_its_weights_options(rule, option, kind):
    def train(groups_of):
        model = plain_chain()
        learner = apical.attach(model, rule, example_input=X, generator=torch.Generator().manual_seed(1))
        optimizer = OPTIMIZERS[kind](learner, groups_of(model))
        layout = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(4):
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()
        assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == layout
        return model, told

    def together(model):
        groups = by_name(model, **option)
        feedback = [p for name, p in model.named_parameters() if name.endswith("feedback")]
        rest = [p for name, p in model.named_parameters() if name.endswith("bias")]
        return [{**groups[0], "params": groups[0]["params"] + feedback}, {"params": rest}]

    model, told = train(lambda model: by_name(model, **option))
    assert [str(one.message)[:22] for one in told] == ["the feedback of '2' li", "the feedback of '4' li"]
    (key,) = option
    assert f"parameter group 1 of the optimizer ({key}=" in str(told[0].message)
    assert f"group 0 ({key}={option[key]})" in str(told[0].message)
    other, silent = train(together)
    assert not silent
    for own, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, its)


def test_kolen_pollacks_law_holds_in_groups_by_name():
    model = plain_chain()
    apical.attach(model, "kp", example_input=X)
    optimizer = torch.optim.SGD(by_name(model, weight_decay=1e-2), 0.1)
    start = distances(model)
    with pytest.warns(UserWarning, match="parameter group 1"):
        steps(model, optimizer, 100)
    for own, first in zip(distances(model), start, strict=True):
        assert torch.isclose(own, first * (1 - 1e-3) ** 100, rtol=1e-3)


def test_the_state_of_an_optimizer_stays_that_of_its_groups():
    def make():
        model = plain_chain()
        apical.attach(model, "kp", example_input=X, generator=torch.Generator().manual_seed(1))
        return model, torch.optim.SGD(by_name(model, weight_decay=0.1), 0.1, 0.9)

    def train(model, optimizer, count):
        with pytest.warns(UserWarning, match="parameter group 1"):
            steps(model, optimizer, count)

    whole, optimizer = make()
    train(whole, optimizer, 4)
    model, optimizer = make()
    train(model, optimizer, 2)
    states = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model, optimizer = make()
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    train(model, optimizer, 2)
    assert all(torch.equal(own, its) for own, its in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_group_of_feedback_alone_keeps_its_options_and_is_told():
    model = plain_chain()
    learner = apical.attach(model, "kp", example_input=X)
    start = [p.detach().clone() for p in learner.feedback_parameters()]
    groups = [{"params": learner.forward_parameters()}, {"params": learner.feedback_parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, 0.1)
    loss(model).backward()
    with pytest.warns(UserWarning, match=r"group 1 of the optimizer \(lr=0\.0\), its weights in group 0 \(lr=0\.1\)"):
        optimizer.step()
    assert all(torch.equal(p, first) for p, first in zip(learner.feedback_parameters(), start, strict=True))


@pytest.mark.parametrize("how", ["clipped alone", "penalty", "both clipped"])
def test_a_gradient_that_weights_have_for_themselves_is_told(how):
    model = plain_chain()
    learner = apical.attach(model, "kp", example_input=X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (loss(model) + (model[2].weight.square().sum() if how == "penalty" else 0)).backward()
    if how != "penalty":
        nn.utils.clip_grad_norm_(learner.forward_parameters() if "alone" in how else model.parameters(), 1e-3)
    if how == "both clipped":
        optimizer.step()
    else:
        with pytest.warns(
            UserWarning, match="gradient of the feedback of '[24]' is not that of its weights.*clip both or none"
        ):
            optimizer.step()


@pytest.mark.parametrize("rule", [apical.rule("urfb", epsilon=0.5), "kp-direct", "fa"])
def test_rules_without_that_law_take_groups_as_they_are(rule):
    model = plain_chain()
    apical.attach(model, rule, example_input=X)
    optimizer = torch.optim.SGD(by_name(model, lr=0.01), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def test_options_that_come_apart_later_are_the_weights():
    def train(groups_of):
        model = plain_chain()
        apical.attach(model, "kp", example_input=X, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(groups_of(model), 0.1)
        steps(model, optimizer, 1)
        optimizer.param_groups[0]["weight_decay"] = 0.5
        steps(model, optimizer, 2)
        return model, optimizer

    def together(model):
        rest = [p for name, p in model.named_parameters() if name.endswith("bias")]
        return [{"params": [p for p in model.parameters() if all(p is not one for one in rest)]}, {"params": rest}]

    model, other = train(by_name)[0], train(together)[0]
    for own, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(own, its)


def test_a_step_that_fails_leaves_the_groups_to_the_next():
    model = plain_chain()
    apical.attach(model, "kp", example_input=X)
    optimizer = torch.optim.SGD(by_name(model), 0.1)
    layout = [[id(p) for p in group["params"]] for group in optimizer.param_groups]

    def fails():
        raise KeyError

    loss(model).backward()
    with pytest.raises(KeyError):
        optimizer.step(fails)
    optimizer.step()
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == layout
