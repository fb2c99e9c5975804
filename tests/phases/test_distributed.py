"""Phases of several processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from apical.losses import cross_entropy
from comparison import equal
from networks import ResidualNet
from phases.common import RULES, X, Y, attach, everything, learn
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(train_on_half, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("rule", RULES)
def test_all_ranks_end_with_the_same_weights_and_feedback(rule, ranks):
    first, second = (found[rule] for found in ranks)
    equal(first, second)


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
