"""Gradients of a batch in pieces, made at once, are those of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.parallel.products import Products
from comparison import equal
from networks import seed
from parallel.networks_in_stages import convolutions, mlp


class Twice(nn.Module):
    """One layer is called twice, and at every position; others see two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x.unsqueeze(1).expand(-1, 3, -1)))
        return self.last(torch.tanh(self.again(torch.tanh(self.again(h)))).flatten(1))


def blocks() -> nn.Sequential:
    return nn.Sequential(mlp()[:4], *mlp()[4:])


CASES = {
    "rows": (mlp, (6,), "dfa", {}),
    "learned": (mlp, (6,), "kp-direct", {}),
    "sparse": (mlp, (6,), "kp-direct", {"connectivity": 0.5}),
    "inside blocks": (blocks, (6,), "kp-direct", {"at": ["0"]}),
    "positions": (Twice, (6,), "dfa", {}),
    "convolutions": (convolutions, (2, 6, 6), "dfa", {}),
}


def gradients(model: nn.Module, parts: list[Tensor], products: Products | None) -> dict[str, Tensor]:
    for part in parts:
        model(part).square().sum().backward()
    if products is not None:
        products.make()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("native", ["on", "off"])
@pytest.mark.parametrize("case", CASES)
def test_of_pieces_as_of_the_whole(case, native, monkeypatch):
    if native == "off":
        monkeypatch.setattr("apical.synapses.native.library", lambda: None)
    make, shape, rule, options = CASES[case]
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn(12, *shape, dtype=torch.float64)
    learner = apical.attach(model, rule, example_input=x, generator=seed(), **options)
    expected = gradients(model, [x], None)
    assert len(expected) >= 4
    model.zero_grad()
    learner.circuit.updater = products = Products()
    for _ in range(2):  # In the second, gradients are written to the memory of the first.
        equal(gradients(model, list(x.split([4, 5, 3])), products), expected, rtol=1e-12)
        model.zero_grad()
    gradients(model, [x], products)
    doubled = gradients(model, [x], products)  # Added to what lies there.
    equal(doubled, {name: 2 * g for name, g in expected.items()}, rtol=1e-12)


def test_hooks_on_weights_see_their_gradients():
    model, x, seen = mlp(), torch.randn(8, 6), []
    learner = apical.attach(model, "dfa", example_input=x)
    model[2].weight.register_hook(lambda grad: seen.append(grad.shape))
    learner.circuit.updater = products = Products()
    gradients(model, list(x.split(4)), products)
    assert seen == [model[2].weight.shape] * 2


def test_what_waits_can_be_dropped():
    model, x = mlp(), torch.randn(8, 6)
    learner = apical.attach(model, "dfa", example_input=x)
    learner.circuit.updater = products = Products()
    model(x).sum().backward()
    products.drop()
    products.make()
    assert model[2].weight.grad is None
