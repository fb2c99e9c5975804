"""Where models are cut, in one process."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import apical
from apical.parallel.splitting import parts_of
from parallel.networks_in_stages import Residual, convolutions, made, mlp


def attached(model: nn.Module, x: torch.Tensor, rule: object = "dfa", **options: object) -> apical.Learner:
    return apical.attach(model, rule, example_input=x, **options)


def test_stages_compute_what_the_model_does():
    for name in ("mlp", "residual", "convolutions"):
        model, [(x, _), *_], options = made(name)
        learner = apical.attach(model, "dfa", **options)
        model.eval()
        with torch.no_grad():
            h = x
            for part in parts_of(learner, x, 3, None):
                assert part.given.shape == h.shape
                h = part.layers(h)
                assert part.gives.shape == h.shape
            assert torch.equal(h, model(x))


def test_names_parameters_and_layers_are_the_models_own():
    learner = attached(model := Residual(), torch.randn(2, 2, 6, 6), at=["first", "second"])
    first, second = parts_of(learner, torch.randn(2, 2, 6, 6), 2, ["second"])
    own = dict(model.named_parameters())
    for part in (first, second):
        assert all(own[name] is parameter for name, parameter in part.layers.named_parameters())
    assert first.names == ("stem", "first")
    assert "scale" in dict(first.layers.named_parameters())


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_the_dearest_stage_is_as_cheap_as_can_be(stages):
    sizes = [9, 30, 4, 20, 20, 5, 12, 3]
    layers = [one for a, b in itertools.pairwise(sizes) for one in (nn.Linear(a, b), nn.Tanh())]
    learner = attached(nn.Sequential(*layers[:-1]), torch.randn(2, 9))
    costs = [a * b for a, b in itertools.pairwise(sizes)]
    best = min(
        max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cut, len(costs))))
        for cut in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    parts = parts_of(learner, torch.randn(2, 9), stages, None)
    assert max(part.cost for part in parts) == 2 * 2 * best  # Two rows, multiplications and additions.


def test_a_signal_that_would_cross_is_refused_with_its_reason():
    x = torch.randn(2, 2, 6, 6)
    learner = attached(Residual(), x)
    with pytest.raises(ValueError, match="the signal would pass there, on its way back through 'second'"):
        parts_of(learner, x, 2, ["second"])
    with pytest.raises(ValueError, match="on its way back through '1'"):
        parts_of(attached(mlp(), torch.randn(2, 6)), torch.randn(2, 6), 2, ["1"])
    mixed = attached(mlp(), torch.randn(2, 6), {"": "dfa", "2": "fa"})
    with pytest.raises(ValueError, match="on its way back through '2'"):
        parts_of(mixed, torch.randn(2, 6), 2, ["2"])


class Inside(nn.Module):
    """Two values pass between the blocks; the inner block's own forward is cut where it is named."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(5, 5)})
        self.tail, self.skip = nn.Linear(5, 3), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.block["a"](x))
        return self.tail(torch.tanh(self.block["b"](h))) + self.skip(x)


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.one(x))
        return self.two(h if h.sum() > 0 else -h)


class Dropping(Deciding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(nn.functional.dropout(self.one(x), training=self.training))


@pytest.mark.parametrize(
    ("model", "stages", "split", "said"),
    [
        (mlp(), 2, ["nowhere"], r"split names \['nowhere'\], which are no modules"),
        (mlp(), 3, ["2"], "which makes 2 stages, but there are 3 processes"),
        (mlp(), 3, ["4", "2"], "calls in another order"),
        (mlp(), 5, None, "can be cut at 3 places alone"),
        (Inside(), 2, ["block.b"], "2 values pass there"),
        (Inside(), 2, ["block"], "it is what the first stage begins with"),
        (Dropping(), 2, None, "the forward pass of Dropping itself is another one in eval mode"),
        (Deciding(), 2, None, "torch.fx can't trace the forward pass of Deciding"),
    ],
)
def test_what_can_not_be_cut(model, stages, split, said):
    with pytest.raises(ValueError, match=said):
        parts_of(attached(model, torch.randn(2, 6)), torch.randn(2, 6), stages, split)


def test_the_models_state_and_mode_stay_as_they_were():
    model, [(x, _), *_], options = made("normalized")
    learner = apical.attach(model, "dfa", **options)
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(3)
    parts_of(learner, x, 2, None)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [one.training for one in model] == [True, False, *[True] * 5]


def test_convolutions_are_weighed_by_their_positions():
    x = torch.randn(2, 2, 6, 6)
    first, second = parts_of(attached(convolutions(), x), x, 2, ["5"])
    assert (first.cost, second.cost) == (2 * 2 * 16 * (4 * 2 * 9 + 4 * 4 * 9), 2 * 2 * (64 * 5 + 5 * 3))
