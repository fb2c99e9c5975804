"""The steps that are timed learn as training does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.benchmark import steps, training_step
from apical.learner import Learner
from apical.losses import squared_error
from apical.networks import mlp, resnet20


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(12, 10),
    )


NETWORKS = {
    "mlp": (lambda: mlp([192, 20, 10]), (3, 8, 8)),
    "convolutional": (convolutional, (3, 8, 8)),
    "resnet20": (resnet20, (3, 16, 16)),
}


def trained_by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", [None, "bp"])
def test_timed_steps_of_backpropagation_end_where_plain_training_does(name, rule):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    x, y = torch.randn(8, *shape, dtype=torch.float64), torch.randint(10, (8,))
    by_hand = copy.deepcopy(model)
    torch.manual_seed(1)  # Of dropout.
    expected = trained_by_hand(by_hand, x, y, 4)
    before = copy.deepcopy(model.state_dict())
    step = training_step(model.eval(), rule, x, y, optimizer="SGD:momentum=0.9", learning_rate=0.01)
    torch.manual_seed(1)
    for _ in range(4):
        step()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)
    assert any(not torch.equal(found[key], before[key]) for key in found)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("rule", ["fa", "dfa", "kp", "usf"])
def test_timed_steps_of_other_rules_learn_as_attached_training_does(rule, local):
    torch.manual_seed(0)
    model = mlp([6, 5, 4, 10])
    x, y = torch.randn(8, 6), torch.randint(10, (8,))
    by_hand = copy.deepcopy(model)
    apical.attach(by_hand, rule, example_input=x, generator=torch.Generator().manual_seed(1))
    expected = trained_by_hand(by_hand, x, y, 5)
    step = training_step(model, rule, x, y, optimizer="SGD:momentum=0.9", learning_rate=0.01, local=local)
    for _ in range(5):
        step()
    torch.testing.assert_close(dict(model.state_dict()), dict(expected))


def test_an_optimizer_that_can_not_be_made_is_named():
    with pytest.raises(ValueError, match="optimizer 'Adam:betas=2' can't be made"):
        training_step(nn.Linear(4, 3), None, torch.zeros(2, 4), torch.arange(2), optimizer="Adam:betas=2")


def test_a_step_adapts_between_backward_and_the_optimizer(monkeypatch):
    torch.manual_seed(0)
    model = mlp([6, 5, 10])
    x, y = torch.randn(4, 6), torch.randint(10, (4,))
    weights = [p.detach().clone() for p in model.parameters()]
    calls = []

    def adapt(self, *arguments):
        assert all(p.grad is not None for p in model.parameters())
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
        calls.append(arguments)

    monkeypatch.setattr(Learner, "adapt", adapt)
    training_step(model, "fa", x, y, optimizer="SGD", criterion=squared_error)()
    assert calls == [(x, y, squared_error)]
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_networks_are_timed_in_train_mode():
    model = convolutional().eval()
    training_step(model, "fa", torch.randn(4, 3, 8, 8), torch.arange(4), optimizer="SGD")
    assert all(module.training for module in model.modules())


def test_a_comparisons_own_step_is_timed_with_its_loss_optimizer_and_batch(monkeypatch):
    from apical import data as images
    from apical.comparison.config import CompareConfig

    config = CompareConfig(
        network="64-7-10",
        rules=("bp", "fa:init=nokland2016"),
        batch=16,
        optimizer="RMSprop",
        learning_rate=0.003,
        loss="squared-error",
    )
    seen = []

    def spy(model, rule, x, y, **options):
        seen.append((rule, tuple(x.shape), tuple(y.shape), options))
        return training_step(model, rule, x, y, **options)

    monkeypatch.setattr(steps, "training_step", spy)
    state = torch.get_rng_state()
    ratios = steps.step_ratios(config, images.load("digits"), seconds=1e-9)
    assert list(ratios) == ["bp", "fa:init=nokland2016"]
    assert all(ratio > 0 for ratio in ratios.values())
    options = {"optimizer": "RMSprop", "learning_rate": 0.003, "criterion": squared_error, "mixed": False}
    assert seen == [(rule, (16, 1, 8, 8), (16,), options) for rule in (None, *ratios)] * 2
    assert torch.equal(torch.get_rng_state(), state)
