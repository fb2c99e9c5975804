"""Hooks that a model puts on its modules in a pass are as they were after passes beside the loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (8,), generator=torch.Generator().manual_seed(6))


class Capturing(nn.Module):
    """Gives out its hidden states, which hooks collect that its first pass installs, as Hugging Face's models do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)])
        self.kind, self.collected = kind, []

    def install(self) -> None:
        for layer in self.layers:
            if self.kind == "forward":
                layer.register_forward_hook(lambda module, args, output: self.collected.append(output))
            elif self.kind == "always":
                layer.register_forward_hook(self.take, with_kwargs=True, always_call=True)
            else:
                layer.register_forward_pre_hook(lambda module, args: self.collected.append(args[0]), prepend=True)

    def take(self, module, args, kwargs, output):
        self.collected.append(output)

    def forward(self, x):
        if not getattr(self, "installed", False):
            self.install()
            self.installed = True
        self.collected = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
        assert len(self.collected) == 3, "a second set of hooks was installed"
        return x


@pytest.mark.parametrize("kind", ["forward", "always", "before"])
@pytest.mark.parametrize("rule", ["fa", "dfa", "np", "wm"])
def test_hooks_that_the_first_pass_installs_are_there_once(rule, kind):
    model = Capturing(kind)
    learner = apical.attach(model, rule, example_input=X)
    if rule == "np":
        apical.audit(learner, X, Y, cross_entropy)
    for _ in range(3):
        cross_entropy(model(X), Y).mean().backward()
        learner.adapt(X, Y, cross_entropy)
    apical.alignment(learner, X, Y, cross_entropy)
    model(X)


def test_a_hook_that_goes_at_its_first_call_is_there_for_the_users_own():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    seen = []

    def once(module, args):
        seen.append(1)
        handle.remove()

    handle = model.register_forward_pre_hook(once)
    model[0].register_forward_hook(lambda *_: seen.append(2))
    apical.attach(model, "fa", example_input=X)
    seen.clear()
    model(X)
    assert seen == [1, 2]
    seen.clear()
    model(X)
    assert seen == [2]
