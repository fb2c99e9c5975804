"""Nothing is left behind: by errors, by training, by models that are dropped."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from learning import RULES, attach, gradients, step
from networks import X, Y, chain


def test_an_exception_in_forward_leaves_no_pass_open():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain()
            self.fails = False

        def forward(self, x):
            h = self.net(x)
            if self.fails:
                raise KeyError("the user's own")
            return h

    model = Fails()
    attach(model, "dfa")
    model.fails = True
    with pytest.raises(KeyError):
        model(X)
    with pytest.raises(RuntimeError, match="called on its own"):
        model.net(X)
    model.fails = False
    assert "net.0.weight" in gradients(model)


@pytest.fixture(autouse=True, scope="module")
def young_objects_alone():
    """Those of all other tests are left out of every search for what is still alive, which takes a second else."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live() -> int:
    gc.collect()
    return sum(1 for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter))


@pytest.mark.parametrize("rule", RULES)
def test_training_leaves_no_tensors_behind(rule):
    model = chain()
    attach(model, rule)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        step(model, optimizer)
    before = live()
    for i in range(50):
        step(model, optimizer)
        if i % 10 == 0:
            with torch.no_grad():
                model(X)
            model(X)  # A pass that no backward follows.
    optimizer.zero_grad()
    step(model, optimizer)
    assert live() <= before


@pytest.mark.parametrize("rule", RULES)
def test_dropping_model_and_learner_frees_them(rule):
    model = chain()
    learner = attach(model, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, optimizer)
    refs = [weakref.ref(o) for o in (model, learner, model[4], model[4].weight, optimizer)]
    del model, learner, optimizer
    gc.collect()
    assert [r() for r in refs] == [None] * 5


@pytest.mark.parametrize("rule", RULES)
def test_activities_are_freed_by_the_backward_without_the_garbage_collector(rule):
    """Autograd alone owns them: a reference cycle through taps would hold a whole batch until gc runs."""
    model = chain()
    attach(model, rule)
    step(model)
    held = []
    handle = model[2].register_forward_hook(lambda m, a, out: held.append(weakref.ref(out)))
    gc.disable()
    try:
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        del loss
        assert held[0]() is None
        loss = nn.functional.cross_entropy(model(X), Y)
        del loss
        assert held[1]() is None
    finally:
        gc.enable()
        handle.remove()
