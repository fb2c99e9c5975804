"""Copies in one pass learn as the same networks one by one."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from learning import spread
from networks import ManyKinds
from replicas.common import NUMBERS, OPTIMIZERS, N, X, Y, attached, chain, losses, made, same, trained, without_biases

RULES = ("bp", "shallow", "fa", "frfb", "dfa", "usf", "frsf", "kp", "matched", "urfb", "kp-direct")


@pytest.mark.parametrize(
    ("make", "rule", "optimizer", "options"),
    spread(
        [chain, without_biases, ManyKinds],
        [*RULES, "ifa"],
        itertools.product(OPTIMIZERS, [{}, {"momentum": 0.9, "weight_decay": 0.01}]),
    ),
)
def test_copies_learn_what_they_would_alone(make, rule, optimizer, options):
    if rule == "ifa" and make is ManyKinds:
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "rule",
    [
        "wm",
        "brsf",
        apical.rule("wm", distribution="rademacher", batches=2, alternate=True, positions=5, warmup=2),
        {"": "brsf", next(iter(dict(ManyKinds().named_children()))): "bp"},
    ],
    ids=["wm", "brsf", "wm-alternate", "mixed"],
)
@pytest.mark.parametrize("make", [chain, ManyKinds])
def test_each_copy_draws_what_it_would_alone(make, rule, optimizer):
    if make is chain and isinstance(rule, dict):
        pytest.skip("names a module of the other network")
    singles = attached(make, rule)
    copies = trained(singles, OPTIMIZERS[optimizer])
    same(copies, singles)
    for one, single in zip(copies, singles, strict=True):
        mine, its = (apical.learner_of(m) for m in (one, single))
        assert torch.equal(mine.generator.get_state(), its.generator.get_state())
        assert mine.adapted == its.adapted


def with_numbers(make, rule) -> list[nn.Module]:
    models = made(make)
    for seed, (model, numbers) in enumerate(zip(models, NUMBERS[rule], strict=True)):
        generator = torch.Generator().manual_seed(10 + seed)
        apical.attach(model, apical.rule(rule, **numbers), example_input=X[0], generator=generator)
    return models


@pytest.mark.parametrize(
    ("make", "rule", "momentum", "optimizer"),
    spread([chain, ManyKinds], NUMBERS, itertools.product([0.0, 0.9], OPTIMIZERS)),
)
def test_copies_have_numbers_of_their_own(make, rule, momentum, optimizer):
    singles = with_numbers(make, rule)
    copies = trained(singles, lambda model: OPTIMIZERS[optimizer](model, momentum=momentum))
    same(copies, singles)
    for one, single in zip(copies, singles, strict=True):
        assert apical.learner_of(one).rules == apical.learner_of(single).rules


BLOCKS = {chain: ["5"], ManyKinds: ["norm", "group"]}


@pytest.mark.parametrize("replicated_first", [False, True])
@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
@pytest.mark.parametrize("make", BLOCKS)
def test_copies_take_their_signal_at_the_same_blocks(make, rule, replicated_first):
    singles = made(make)
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    options = {"at": BLOCKS[make], "connectivity": 0.5}
    if replicated_first:
        replicas = apical.replicate(singles, example_input=X[0])
        drawn = [generator.clone_state() for generator in generators]
        apical.attach(replicas, rule, example_input=X, generator=drawn, **options)
    for single, generator in zip(singles, generators, strict=True):
        apical.attach(single, rule, example_input=X[0], generator=generator, **options)
    if not replicated_first:
        replicas = apical.replicate(singles, example_input=X[0])
    same(replicas.split(), singles)
    moves = OPTIMIZERS["torch"](replicas)
    for _ in range(3):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = OPTIMIZERS["torch"](single)
        for _ in range(3):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)
    assert list(apical.learner_of(replicas.split()[0]).blocks) == BLOCKS[make]


class Own(nn.Module):
    """Has attributes that are called `copies`."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ModuleList([nn.Linear(6, 6), nn.Tanh()])
        self.block = nn.Tanh()
        vars(self.block)["copies"] = "two"
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.block(self.copies[1](self.copies[0](x))))


@pytest.mark.parametrize(
    ("rule", "at"),
    [("fa", None), ("dfa", None), ("dfa", ["block"]), (apical.rule("sg-direct", solver="ridge"), ["block"])],
)
def test_networks_may_have_copies_of_their_own(rule, at):
    x = torch.randn(2, 4, 6)
    learner = apical.attach(Own(), rule, example_input=x[0], at=at)
    assert learner.copies == 1
    if at is None:
        replicas = apical.replicate(learner.model, 2, example_input=x[0])
        torch.testing.assert_close(replicas(x)[1], learner.model(x[1]))
        assert type(replicas.split()[0].copies) is nn.ModuleList


def test_copies_attached_with_rules_and_generators_of_their_own_are_the_networks_attached_alone():
    rules = [apical.rule("urfb", **numbers) for numbers in NUMBERS["urfb"]]
    replicas = apical.replicate(made(chain), example_input=X[0])
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    learner = apical.attach(replicas, rules, example_input=X, generator=generators)
    same(replicas.split(), with_numbers(chain, "urfb"))
    assert learner.name == "urfb"
    two = pickle.loads(pickle.dumps(replicas))
    same(two.split(), replicas.split())
    state = learner.state_dict()
    again = apical.learner_of(two)
    draw = torch.rand(3, generator=learner.generator.own[1])
    again.load_state_dict(state)
    assert torch.equal(torch.rand(3, generator=again.generator.own[1]), draw)


TUNED = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.0},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {"lr_decay": 0.1},
}


def smooth() -> nn.Sequential:
    """No bias without a gradient, as before batch norm: Adam would make steps of its rounding."""
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.Tanh(), nn.Linear(9, 3)).double()


@pytest.mark.parametrize("kind", TUNED)
def test_copies_are_tuned_one_by_one(kind):
    rates, decays = (0.5, 1.0, 3.0), (0.0, 0.1, 0.01)
    singles = attached(smooth, "kp-direct")
    replicas = apical.replicate(singles, example_input=X[0])
    moves = getattr(torch.optim, kind)(replicas.parameters(), lr=0.01, **TUNED[kind])
    replicas.tune(moves, rates=rates, weight_decay=decays)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(moves, 0.9)
    for _ in range(4):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
        scheduler.step()
    for index, single in enumerate(singles):
        options = {**TUNED[kind], "weight_decay": decays[index]}
        own = getattr(torch.optim, kind)(single.parameters(), lr=0.01 * rates[index], **options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(own, 0.9)
        for _ in range(4):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
            scheduler.step()
    same(replicas.split(), singles)


def test_plain_networks_learn_by_backpropagation_as_alone():
    singles = made(ManyKinds)
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
