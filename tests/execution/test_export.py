"""Exported models go on learning by their rule, or say that they won't."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from learning import RULES, spread
from networks import IMAGES, X, Y, dynamo, plain_chain

CARRIED = ("bp", "shallow", "fa", "frfb", "dfa", "usf", "frsf", "kp", "matched", "urfb", "kp-direct")


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, padding=1, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def gradients(model, x):
    model.zero_grad()
    F.cross_entropy(model(x), Y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@dynamo
@pytest.mark.parametrize(
    ("rule", "make", "x", "connectivity"), spread(CARRIED, [(plain_chain, X), (images, IMAGES)], [None, 0.6])
)
def test_an_export_learns_by_the_rule(rule, make, x, connectivity):
    model = make()
    apical.attach(model, rule, example_input=x, connectivity=connectivity)
    model(x)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(gradients(exported, x), gradients(model, x))


@dynamo
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in CARRIED])
def test_an_export_that_can_not_carry_the_rule_says_so(rule):
    model = plain_chain()
    apical.attach(model, rule, example_input=X)
    with pytest.warns(UserWarning, match="an exported model can't carry pathway .* by backpropagation"):
        torch.export.export(model, (X,))


@dynamo
@pytest.mark.parametrize("rule", RULES)
def test_an_export_in_eval_mode_is_the_plain_model(rule):
    model = plain_chain().eval()
    apical.attach(model, rule, example_input=X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        program = torch.export.export(model, (X,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("linear" in name or "mm" in name for name in called) == 3
    torch.testing.assert_close(program.module()(X), model(X))
