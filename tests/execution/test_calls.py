"""Other ways to call a model: compiled in place, or by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy
from learning import RULES, attach, spread, step
from networks import X, Y, dynamo, plain_chain


@dynamo
@pytest.mark.parametrize(("rule", "inner"), spread(["fa", "dfa", "wm", "np", "sg", "reinforce"], [False, True]))
def test_a_model_compiled_in_place_is_measured_and_taught_as_it_was(rule, inner):
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = plain_chain()
        learner = attach(model, rule)
        if compiled:
            (model[2] if inner else model).compile(backend="eager")
        report = apical.audit(learner, X, Y, cross_entropy)
        measured = apical.alignment(learner, X, Y, cross_entropy)
        cross_entropy(model(X), Y).mean().backward()
        learner.adapt(X, Y, cross_entropy)
        found.append((report, measured, {n: p.grad for n, p in model.named_parameters()}, model[2].feedback))
        assert (model._compiled_call_impl is not None) == (compiled and not inner)
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(
        {n: m.asdict() for n, m in found[0][1].items()}, {n: m.asdict() for n, m in found[1][1].items()}
    )
    torch.testing.assert_close(found[0][2:], found[1][2:])
    torch.compiler.reset()


class Refining(nn.Module):
    """Calls itself, for a second opinion."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x, again: bool = True):
        h = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return h + self(x, again=False) if again else h


WHOLE = ("dfa", "ifa", "brsf", "kp-direct", "np", "np-direct", "sg", "sg-direct", "reinforce")


@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_calls_itself_learns_or_is_refused_by_name(rule):
    model = Refining()
    learner = apical.attach(model, rule, example_input=X)
    if rule not in WHOLE:
        step(model)
        learner.adapt(X, Y, cross_entropy)
        return
    for call in (lambda: step(model), lambda: apical.audit(learner, X, Y, cross_entropy)):
        with pytest.raises(RuntimeError, match="Refining calls itself inside its own forward pass"):
            call()
    with torch.no_grad():
        assert model(X).shape == (8, 3)


class Interrupted(nn.Module):
    def forward(self, x):
        if x is None:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("rule", WHOLE)
def test_a_pass_that_was_interrupted_is_none_that_calls_itself(rule):
    model = nn.Sequential(Interrupted(), *plain_chain())
    attach(model, rule)
    with pytest.raises(KeyboardInterrupt):
        model(None)
    F.cross_entropy(model(X), Y).backward()
    assert model[5].weight.grad is not None
