"""Copies in one pass against the same networks one by one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy

N, ROWS = 3, 5
X = torch.randn(N, ROWS, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(3, (N, ROWS), generator=torch.Generator().manual_seed(2))
RULES = ("bp", "shallow", "fa", "frfb", "dfa", "usf", "frsf", "kp", "matched", "urfb", "kp-direct")


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)
    ).double()


def without_biases() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 9, bias=False), nn.Tanh(), nn.Linear(9, 3, bias=False)).double()


class Residual(nn.Module):
    """Strided, grouped and dilated convolutions, batch and group norm, a shortcut, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.group = nn.GroupNorm(2, 4)
        self.down = nn.Conv2d(4, 6, 2, stride=2, padding_mode="circular")
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        h = h + torch.tanh(self.group(self.inner(h)))
        h = F.relu(self.up(F.relu(self.down(h))))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


def made(make) -> list[nn.Module]:
    models = []
    for seed in range(N):
        torch.manual_seed(seed)
        models.append(make())
    return models


def attached(make, rule) -> list[nn.Module]:
    models = made(make)
    for seed, model in enumerate(models):
        apical.attach(model, rule, example_input=X[0], generator=torch.Generator().manual_seed(10 + seed))
    return models


def losses(outputs, y=Y):
    return cross_entropy(outputs.flatten(0, 1), y.flatten()).view(N, -1).mean(1)


def same(ours: list[nn.Module], theirs: list[nn.Module]) -> None:
    for mine, its in zip(ours, theirs, strict=True):
        a, b = mine.state_dict(), its.state_dict()
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


OPTIMIZERS = {
    "torch": lambda model, **options: torch.optim.SGD(model.parameters(), 0.1, **options),
    "local": lambda model, **options: apical.LocalSGD(apical.learner_of(model), 0.1, **options),
}


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "momentum"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", [*RULES, "ifa"])
@pytest.mark.parametrize("make", [chain, without_biases, Residual])
def test_copies_learn_what_they_would_alone(make, rule, optimizer, options):
    if rule == "ifa" and make is Residual:
        pytest.skip("needs a chain that keeps shape")
    singles = attached(make, rule)
    replicas = apical.replicate(singles, example_input=X[0])
    moves = OPTIMIZERS[optimizer](replicas, **options)
    for _ in range(4):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = OPTIMIZERS[optimizer](single, **options)
        for _ in range(4):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)


def test_plain_networks_learn_by_backpropagation_as_alone():
    singles = made(Residual)
    replicas = apical.replicate(singles, example_input=X[0])
    moves = torch.optim.Adam(replicas.parameters(), 0.01)
    for _ in range(3):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = torch.optim.Adam(single.parameters(), 0.01)
        for _ in range(3):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)


def test_a_factor_of_the_loss_is_a_learning_rate_of_ones_own():
    singles = attached(chain, "kp")
    replicas = apical.replicate(singles, example_input=X[0])
    rates = torch.tensor([0.05, 0.1, 0.4], dtype=torch.float64)
    moves = torch.optim.SGD(replicas.parameters(), 1.0, momentum=0.9)
    for _ in range(3):
        (losses(replicas(X)) * rates).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = torch.optim.SGD(single.parameters(), float(rates[index]), momentum=0.9)
        for _ in range(3):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)


def test_copies_of_one_network_have_equal_weights_and_draw_feedback_of_their_own():
    model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))
    before = copy.deepcopy(model.state_dict())
    replicas = apical.replicate(model, 4)
    learner = apical.attach(
        replicas, apical.rule("fa", init=nn.init.xavier_uniform_), example_input=torch.randn(4, 2, 200)
    )
    copies = replicas.split()
    for one in copies:
        assert torch.equal(one[0].weight, model[0].weight)
        B = apical.learner_of(one).synapses["2"].feedback
        assert B.abs().max() <= (6 / 110) ** 0.5  # Glorot's bound for one copy, not for four.
        assert B.abs().max() > 0.9 * (6 / 110) ** 0.5
    feedback = learner.synapses["2"].feedback.chunk(4)
    assert not torch.equal(feedback[0], feedback[1])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert type(model[0]) is nn.Linear


def test_a_function_is_called_for_every_copy():
    torch.manual_seed(0)
    replicas = apical.replicate(chain, 2)
    torch.manual_seed(0)
    same(replicas.split(), [chain(), chain()])


def test_dropout_masks_are_independent():
    replicas = apical.replicate(nn.Sequential(nn.Linear(3, 1000), nn.Dropout(0.5)), 2)
    masks = replicas(torch.ones(2, 1, 3)) == 0
    assert 0.4 < (masks[0] ^ masks[1]).double().mean() < 0.6


def test_a_mirror_learns_every_copys_own_weights():
    torch.manual_seed(0)
    singles = [nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)) for _ in range(N)]
    replicas = apical.replicate(singles)
    x, y = torch.randn(N, 64, 20), torch.randint(5, (N, 64))
    learner = apical.attach(replicas, "wm", example_input=x)
    for _ in range(400):
        learner.adapt(x, y, cross_entropy)
    for one, single in zip(replicas.split(), singles, strict=True):
        B = apical.learner_of(one).synapses["2"].feedback.flatten()
        assert F.cosine_similarity(B, single[2].weight.flatten(), dim=0) > 0.98


def test_measures_are_those_of_single_copies():
    replicas = apical.replicate(attached(chain, "fa"), example_input=X[0])
    learner = apical.learner_of(replicas)
    with pytest.raises(ValueError, match="split"):
        apical.alignment(learner, X, Y, cross_entropy)
    with pytest.raises(ValueError, match="split"):
        apical.audit(learner, X, Y, cross_entropy)
    one = replicas.split()[1]
    found = apical.alignment(apical.learner_of(one), X[1], Y[1], cross_entropy)
    assert found["6"].matrix_angle is not None


REGRESSIONS = {
    "np": {},
    "np, ridge": {"solver": "ridge"},
    "np, uniform": {"distribution": "uniform", "noise": 0.1, "warmup": 2},
    "sg": {"rate": 0.5},
    "sg, ridge": {"solver": "ridge", "gamma": 2.0},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("make", [chain, without_biases, Residual])
def test_feedback_regresses_as_alone(make, name, optimizer, monkeypatch):
    if make is Residual and "ridge" in name:
        pytest.skip("ridge is for linear layers")
    drawn, turn = iter(range(10**6)), []

    def take(supply, shape):
        """Noise of every copy from a stream of its own; of one network alone, from that of its number."""
        which, own = turn or range(N), torch.Size([shape[0], shape[1] // len(turn or range(N)), *shape[2:]])
        seed = next(drawn)
        return torch.cat(
            [torch.randn(own, generator=stream(copy, seed), dtype=torch.float64) for copy in which], 1
        ), None

    def stream(index, seed):
        return torch.Generator().manual_seed(1000 * index + seed)

    monkeypatch.setattr("apical.noise.Supply.take", take)
    rule = apical.rule(name.partition(",")[0], **REGRESSIONS[name])
    singles = attached(make, rule)
    before = [{k: v.clone() for k, v in model.state_dict().items() if k.endswith("feedback")} for model in singles]
    replicas = apical.replicate(singles, example_input=X[0])
    moves, learner = OPTIMIZERS[optimizer](replicas), apical.learner_of(replicas)
    for _ in range(4):
        losses(replicas(X)).sum().backward()
        learner.adapt(X, Y, cross_entropy)
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        drawn, turn = iter(range(10**6)), [index]
        own, alone = OPTIMIZERS[optimizer](single), apical.learner_of(single)
        for _ in range(4):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            alone.adapt(X[index], Y[index], cross_entropy)
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)
    assert all(
        not torch.equal(model.state_dict()[k], b[k]) for model, b in zip(singles, before, strict=True) for k in b
    )


@pytest.mark.parametrize("solver", ["sgd", "ridge"])
@pytest.mark.parametrize("rule", ["sg", "sg-direct"])
def test_feedback_of_a_single_copy_regresses(rule, solver):
    single = attached(chain, apical.rule(rule, rate=0.5, solver=solver))[0]
    replicas = apical.replicate([single], example_input=X[0])
    replicas(X[:1]).square().sum().backward()
    apical.learner_of(replicas).adapt(X[:1], Y[:1], cross_entropy)
    single(X[0]).square().sum().backward()
    apical.learner_of(single).adapt(X[0], Y[0], cross_entropy)
    same(replicas.split(), [single])


def test_feedback_regresses_on_the_pass_that_the_loop_has_made():
    replicas = apical.replicate(attached(chain, "sg"), example_input=X[0])
    learner, passes = apical.learner_of(replicas), []
    losses(replicas(X)).sum().backward()
    learner.adapt(X, Y, cross_entropy)  # The first time, whether the model is random is looked at.
    replicas.model.register_forward_hook(lambda *_: passes.append(1))
    x = X.clone()
    losses(replicas(x)).sum().backward()
    learner.adapt(x, Y, cross_entropy)
    assert len(passes) == 2
    x.add_(1)
    torch.testing.assert_close(replicas(x), replicas(x.clone()))


@pytest.mark.parametrize("rule", ["np-direct", "sg-direct", "reinforce"])
def test_rules_that_compare_losses_are_refused(rule):
    with pytest.raises(ValueError, match="one by one"):
        apical.attach(apical.replicate(chain(), 2), rule, example_input=X[:2])


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(x).softmax(1))


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda: apical.replicate(chain()), "n must be"),
        (lambda: apical.replicate(chain(), 0), "n must be"),
        (lambda: apical.replicate([chain()], 2), "leave n out"),
        (lambda: apical.replicate(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), 2), "1: LayerNorm mixes channels"),
        (lambda: apical.replicate(nn.Sequential(nn.Embedding(3, 3)), 2), "Embedding holds weight"),
        (lambda: apical.replicate([nn.Linear(3, 2), nn.Linear(3, 4)]), "network 2 is built otherwise"),
        (lambda: apical.replicate([chain(), attached(chain, "fa")[0]]), "attach all or none"),
        (lambda: apical.replicate([*attached(chain, "fa"), attached(chain, "kp")[0]]), "other rules"),
        (lambda: apical.replicate(Mixes(), 2, example_input=torch.randn(2, 6)), "mixes channels outside"),
        (lambda: apical.replicate(chain(), 3)(X[0]), "copies first"),
        (
            lambda: apical.replicate(nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), 3)(torch.randn(3, 4, 3)),
            "side by side",
        ),
    ],
)
def test_what_can_not_be_done_is_refused(act, match):
    with pytest.raises(ValueError, match=match):
        act()


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="networks"):
        apical.replicate([1, 2])
