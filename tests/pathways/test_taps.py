"""Calling a part of a directly taught model, and inputs of another size than the example."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from attaching.refusals import IMAGES, Named, loss
from networks import X, plain_chain


@pytest.mark.parametrize("rule", ["dfa", "kp-direct", "ifa"])
def test_calling_a_part_of_a_directly_taught_model(rule):
    model = Named()
    apical.attach(model, rule, example_input=X)
    h = torch.randn(3, 6, requires_grad=True)
    for part, x in ((model.head, h), (model.body, X), (model.body[0], X)):
        with pytest.raises(
            RuntimeError, match=rf"'{'head' if part is model.head else 'body'}.*called on its own.*whole"
        ):
            part(x)
        with torch.no_grad():
            part(x)
    with pytest.raises(RuntimeError, match="called on its own"):
        model.forward(X)
    loss(model).backward()
    assert model.body[0].weight.grad is not None


def test_calling_a_part_of_a_model_whose_feedback_is_drawn_with_every_pass():
    model = Named()
    learner = apical.attach(model, "brsf", example_input=X)
    for call in (lambda: model.head(torch.randn(3, 6, requires_grad=True)), lambda: model.forward(X)):
        with pytest.raises(RuntimeError, match=r"called on its own.*drawn with every pass"):
            call()
    with torch.no_grad():
        model.head(torch.randn(3, 6))
    loss(model).backward()
    first = learner.synapses["head"].feedback.clone()
    loss(model).backward()
    assert not torch.equal(first, learner.synapses["head"].feedback)


def test_calling_a_part_of_a_model_taught_at_blocks():
    model = plain_chain()
    apical.attach(model, "dfa", example_input=X, at=["1", "3"])
    with pytest.raises(RuntimeError, match="'1' was called on its own"):
        model[1](torch.randn(2, 6, requires_grad=True))


class AnySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
def test_an_input_of_another_size_than_the_example(rule):
    model = AnySize()
    apical.attach(model, rule, example_input=IMAGES)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'b' has shape \[4, 4, 6, 6\].*\[N, 4, 8, 8\].*example_input"):
            model(IMAGES[..., :6, :6])
        with pytest.raises(RuntimeError, match="called on its own"):
            model.b(torch.randn(2, 4, 8, 8))  # The pass that failed is over.
    with torch.no_grad():
        model(IMAGES[..., :6, :6])
    model(IMAGES[:3]).sum().backward()  # Any batch size.
    assert float(model.a.weight.grad.abs().sum()) > 0
    plain = AnySize()
    apical.attach(plain, "fa")
    plain(IMAGES[..., :6, :6]).sum().backward()


def test_an_output_of_another_size_than_the_example():
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.times = 1

        def forward(self, x):
            return self.b(torch.tanh(self.a(x))).repeat(1, self.times)

    model = Upsampling()
    apical.attach(model, "dfa", example_input=X)
    model.times = 2
    with pytest.raises(RuntimeError, match=r"output has 8 values per sample.*'b'.*for 4.*example_input"):
        model(X)
    model.times = 1
    model(X).sum().backward()
