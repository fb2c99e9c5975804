"""Networks whose copies would not compute what they compute alone are told, whenever a batch is there to show it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical

N = 3
X = torch.randn(N, 4, 6, generator=torch.Generator().manual_seed(1))


class Through(nn.Module):
    """Two layers, with `by` between the first one's output h and the input x."""

    def __init__(self, by, width: int = 4) -> None:
        super().__init__()
        self.first, self.last, self.by = nn.Linear(6, 4), nn.Linear(width, 3), by

    def forward(self, x):
        return self.last(self.by(self.first(x), x))


MIXING = {
    "cat": (lambda h, x: torch.cat([h, x], 1), 10),
    "chunk": (lambda h, x: h.chunk(2, 1)[0] * h.chunk(2, 1)[1].sigmoid(), 2),
    "softmax": (lambda h, x: h.softmax(1), 4),
    "norm": (lambda h, x: F.normalize(h, dim=1), 4),
    "centre": (lambda h, x: h - h.mean(1, keepdim=True), 4),
    "input": (lambda h, x: h + x.amax(1, keepdim=True), 4),
    "view": (lambda h, x: h.view(-1, 4), 4),
}


def equal(by, width) -> nn.Module:
    """A network whose copies are equal and give zeros, which do not show that they mix."""
    model = Through(by, width)
    nn.init.zeros_(model.last.weight)
    return model


@pytest.mark.parametrize("x", [X, X[:1].expand(N, 4, 6), torch.zeros_like(X)], ids=["own", "same", "zeros"])
@pytest.mark.parametrize("alike", [False, True], ids=["different", "alike"])
@pytest.mark.parametrize("name", MIXING)
def test_networks_that_mix_channels_are_refused(name, alike, x):
    model = equal(*MIXING[name]) if alike else None
    models = [model or Through(*MIXING[name]) for _ in range(N)]
    with pytest.raises(ValueError, match="train copies one by one"):
        apical.replicate(models, example_input=x[0])
    replicas = apical.replicate(models)
    with pytest.raises(ValueError, match="train copies one by one"):
        apical.attach(replicas, "fa", example_input=x)
    assert not hasattr(replicas.model.first, "feedback")
    apical.attach(replicas, "fa")
    for _ in range(2):
        with pytest.raises(ValueError, match="train copies one by one"):
            replicas(x)


LOST = {
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), (2, 5, 6), "'0'"),
    "positions": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2), nn.Linear(9, 5)),
        (2, 1, 5, 5),
        "'2'",
    ),
    "forward": (lambda: Through(lambda h, x: h * torch.ones(4)), (2, 6), "the forward"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_layer_that_can_not_have_copies_is_named(name):
    make, shape, where = LOST[name]
    x = torch.randn(N, *shape)
    with pytest.raises(ValueError, match=f"{where}.* fails on copies .* train copies one by one"):
        apical.replicate(make, N)(x)
    with pytest.raises(ValueError, match=f"{where}.* fails on copies .* train copies one by one"):
        apical.attach(apical.replicate(make, N), "fa", example_input=x)


def test_a_batch_that_fits_no_network_is_told_as_such():
    with pytest.raises(ValueError, match="does not pass through the network: mat1"):
        apical.replicate(nn.Linear(6, 3), N, example_input=torch.randn(4, 5))
    replicas = apical.replicate(nn.Linear(6, 3), N)
    with pytest.raises(RuntimeError, match="Expected size"):
        replicas(X[..., :5])
    replicas(X)


class Counting(nn.Module):
    """Draws, counts its passes, and keeps statistics."""

    passes = 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))

    def forward(self, x):
        Counting.passes += 1
        return self.body(x)


@pytest.mark.parametrize("rule", [None, "kp", "dfa", "np", "brsf"])
def test_comparing_leaves_no_trace_and_is_made_once(rule):
    found = []
    for compared in (False, True):
        torch.manual_seed(0)
        replicas = apical.replicate(Counting, N)
        if rule is not None:
            generator = torch.Generator().manual_seed(1)
            apical.attach(replicas, rule, example_input=X if rule == "dfa" else None, generator=generator)
        replicas.compared = not compared
        replicas.model.body[1].eval()
        hooked = []
        replicas.model.body[0].register_forward_hook(lambda *_, seen=hooked: seen.append(1))
        torch.manual_seed(3)
        before = Counting.passes
        outputs = [replicas(X) for _ in range(2)]
        # A pass of each network and one of all copies, in either mode, besides the two asked for.
        assert Counting.passes - before == (2 * (N + 1) if compared else 0) + 2
        assert len(hooked) == 2
        outputs[1].sum().backward()
        assert replicas.compared
        modes = [module.training for module in replicas.modules()]
        state = {**replicas.state_dict(), **{name: p.grad for name, p in replicas.named_parameters()}}
        found.append((outputs, modes, state, torch.get_rng_state()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_comparing_waits_for_a_batch_that_shows_something():
    replicas = apical.replicate(lambda: Through(*MIXING["softmax"]), N)
    replicas(X[:, :0])
    replicas(X * torch.nan)
    with pytest.raises(ValueError, match="mixes channels"):
        replicas(X)
    replicas = apical.replicate(lambda: Through(*MIXING["softmax"]), N)
    torch.func.vmap(replicas)(X[None])
    assert not replicas.compared
    fine = apical.replicate(lambda: Through(lambda h, x: h.tanh()), N)
    torch.compile(fine, backend="eager")(X)
    assert not fine.compared


@pytest.mark.parametrize("move", [copy.deepcopy, lambda model: model.double(), lambda model: model.bfloat16()])
def test_copies_that_have_moved_are_compared(move):
    replicas = move(apical.replicate(Counting, N))
    x = X.to(next(replicas.parameters()).dtype)
    with torch.inference_mode():
        replicas(x)
    assert replicas.compared
    assert copy.deepcopy(replicas).compared
    replicas = move(apical.replicate(lambda: Through(*MIXING["softmax"]), N))
    with pytest.raises(ValueError, match="mixes channels"):
        replicas(x)


def test_copies_are_compared_under_autocast():
    replicas = apical.replicate(Counting, N)
    with torch.autocast("cpu", torch.bfloat16):
        replicas(X)
    assert pickle.loads(pickle.dumps(replicas)).compared
    replicas = apical.replicate(lambda: Through(*MIXING["softmax"]), N)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="mixes channels"):
        replicas(X)


def test_what_is_random_in_eval_mode_is_said_to_be_beyond_comparison():
    replicas = apical.replicate(lambda: Through(lambda h, x: F.dropout(h, 0.5)), N)
    with pytest.warns(UserWarning, match="random even in eval mode"):
        replicas(X)
    replicas(X)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x, y):
        return self.last(x.add_(1).mul_(y.add_(1)))


def test_inputs_may_be_changed_in_place():
    replicas = apical.replicate(InPlace, N)
    x, y = X.clone(), torch.ones(N, 4, 6, dtype=torch.int64)
    replicas(x, y=y)
    assert replicas.compared
    assert torch.equal(x, X)
    assert bool((y == 1).all())


@pytest.mark.parametrize("gain", [0.0, 1.0, 3.0])
def test_deep_networks_that_magnify_rounding_are_not_refused(gain):
    # So wide that copies side by side add up in another order than one alone, whatever the machine.
    layers = [layer for _ in range(60) for layer in (nn.Linear(100, 100), nn.Tanh())]
    torch.manual_seed(0)
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0, gain / 100**0.5)
    replicas = apical.replicate(nn.Sequential(*layers), N)
    x = torch.randn(N, 4, 100, generator=torch.Generator().manual_seed(0))
    if gain > 1:
        with pytest.warns(UserWarning, match="magnifies rounding"):
            replicas(x)
    replicas(x)
    assert replicas.compared


def test_networks_that_differ_in_more_than_weights_are_told():
    models = [Through(by) for by in (lambda h, x: h, lambda h, x: 2 * h)]
    with pytest.raises(ValueError, match="differ in more than weights"):
        apical.replicate(models, example_input=X[0])


class InTraining(nn.Module):
    """Does something between two layers in training alone."""

    def __init__(self, by) -> None:
        super().__init__()
        self.first, self.last, self.by = nn.Linear(6, 4), nn.Linear(4, 3), by

    def forward(self, x):
        h = self.first(x)
        return self.last(self.by(h) if self.training else h)


@pytest.mark.parametrize("dropout", [False, True])
def test_networks_that_mix_channels_in_training_alone_are_refused(dropout):
    def make():
        mixing = InTraining(lambda h: h - h.mean(1, keepdim=True))
        return nn.Sequential(nn.Dropout(), mixing) if dropout else mixing

    with pytest.raises(ValueError, match=r"in training mode.*train copies one by one"):
        apical.replicate(make, N, example_input=X[0])
    with pytest.raises(ValueError, match=r"in training mode.*train copies one by one"):
        apical.replicate(make, N)(X)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "by", [lambda h: h + torch.randn_like(h), lambda h: nn.BatchNorm1d(4)(h)], ids=["noise", "one row"]
)
def test_what_is_random_or_fails_in_training_alone_is_no_mixing(by):
    x = X[:, :1]
    replicas = apical.replicate(lambda: InTraining(by), N, example_input=x[0])
    assert replicas.compared
