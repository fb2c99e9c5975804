"""Phases of several processes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import apical
from apical.losses import cross_entropy
from comparison import close, equal
from networks import ResidualNet
from phases.common import RULES, X, Y, attach, everything, learn, rule_of
from processes import on_two_ranks


def train_on_half(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """Rule -> state after three steps."""
    found = {}
    for rule in RULES:
        net = ResidualNet()
        learner = attach(net, rule)
        # Buffers are not broadcast, so that equal feedback is adapt's doing.
        ranks = DistributedDataParallel(net, broadcast_buffers=False, find_unused_parameters=rule == "reinforce")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        half = slice(6 * rank, 6 * rank + 6)
        drawn = []
        for _ in range(3):
            torch.manual_seed(rank)
            learn(net, learner, x=X[half], y=Y[half], call=ranks)
            drawn.append(everything(net, learner)["head.weight.grad"])
            optimizer.step()
            optimizer.zero_grad()
        state = {k: v for k, v in net.state_dict().items() if "running" not in k}
        found[rule] = {k: v.clone() for k, v in state.items()}
        learner.detach()
    return found


SHARES = (5, 8)
"""Of a batch of 8, what the first of two processes gets: 5 and 3 samples, all and none."""


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 3)
    ).double()


def rule_for(name: str):
    ridge, mixed = {"": "np", "4": apical.rule("np", solver="ridge")}, {"": "wm", "4": "dfa", "6": "np"}
    return {"np-ridge": ridge, "mixed": mixed}.get(name, rule_of(name))


def course(net: nn.Module, x: torch.Tensor, y: torch.Tensor, call=None) -> dict[str, torch.Tensor]:
    """State after four steps on a share of eight samples."""
    learner = apical.learner_of(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(4):
        (cross_entropy((net if call is None else call)(x), y).sum() / (8 if call is None else 4)).backward()
        learner.adapt(x, y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()
    return {k: v.clone() for k, v in net.state_dict().items()}


def train_on_shares(rank: int) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    found = {}
    for rule, share in itertools.product(RULES, SHARES):
        net = plain()
        apical.attach(net, rule_for(rule), example_input=X[:2].double(), generator=torch.Generator().manual_seed(1))
        ranks = DistributedDataParallel(net, broadcast_buffers=False, find_unused_parameters=rule == "reinforce")
        own = slice(0, share) if rank == 0 else slice(share, 8)
        found[rule, share] = course(net, X[own].double(), Y[own], ranks)
        found[rule, share]["adapted"] = torch.tensor(apical.learner_of(net).adapted)
    return found


def train_on_both(rank: int) -> tuple:
    return train_on_half(rank), train_on_shares(rank)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(train_on_both, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("rule", RULES)
def test_all_ranks_end_with_the_same_weights_and_feedback(rule, ranks):
    first, second = (found[0][rule] for found in ranks)
    equal(first, second)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rule", RULES)
def test_ranks_whose_batches_differ_in_size_or_are_empty_learn_the_same(rule, share, ranks):
    first, second = (found[1][rule, share] for found in ranks)
    equal(first, second)
    assert first["adapted"] == 4


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rule", ["sg", "sg-direct"])
def test_ranks_whose_batches_differ_in_size_learn_what_one_process_does(rule, share, ranks):
    """Feedback is learned from the mean over samples, not over processes."""
    net = plain()
    apical.attach(net, rule, example_input=X[:2].double(), generator=torch.Generator().manual_seed(1))
    expected = course(net, X[:8].double(), Y[:8])
    close({name: ranks[0][1][rule, share][name] for name in expected}, expected, 1e-12)


def test_ranks_draw_noise_of_their_own(monkeypatch):
    from apical.phases.phase import Phase

    net = ResidualNet()
    learner = attach(net, "wm")
    draws = []
    for rank in range(2):
        monkeypatch.setattr("apical.distributed.together", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        learner.generator.manual_seed(0)
        draws.append(torch.rand(3, generator=Phase(learner, X, Y, cross_entropy).generator))
    assert not torch.equal(*draws)
