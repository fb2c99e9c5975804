"""The same on a GPU, where there is one: graphs of CUDA's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from comparison import equal
from learning import RULES
from networks import seed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BATCHES = [(torch.randn(12, 4, generator=seed(n)), torch.randint(3, (12,), generator=seed(100 + n))) for n in range(50)]


def criterion(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def trained(rule: str, local: bool, captured: bool):
    """State after fifty steps with a scheduler, the losses on the way, and the function that took the steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    ).cuda()
    batches = [(x.cuda(), y.cuda()) for x, y in BATCHES]
    learner = apical.attach(net, rule, example_input=batches[0][0], generator=seed(1))
    optimizer = (
        apical.LocalSGD(learner, lr=0.1, momentum=0.9)
        if local
        else torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)

    def step(x, y):
        loss = criterion(net(x), y).mean()
        loss.backward()
        learner.adapt(x, y, criterion)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    call = apical.captured(step, *batches[0]) if captured else step
    losses = []
    for x, y in batches:
        losses.append(call(x, y).detach())
        scheduler.step()
    state = {**net.state_dict(), "losses": torch.stack(losses), "generator": learner.generator.get_state()}
    return state, learner.adapted, call


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "brsf"])
def test_fifty_steps_are_those_of_the_step_itself(rule, local):
    expected, adapted, _ = trained(rule, local, captured=False)
    got, counted, call = trained(rule, local, captured=True)
    assert call.why is None
    assert (call.replays, counted) == (47, adapted)
    equal(got, expected, rtol=0, atol=0)


def test_dropout_draws_anew_in_every_replay():
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3)).cuda()
    learner = apical.attach(net, "fa")
    optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.0)
    x, y = (one.cuda() for one in BATCHES[0])

    def step(x, y):
        loss = criterion(net(x), y).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def losses(call):
        torch.manual_seed(0)
        return [call(x, y).item() for _ in range(10)]

    found = losses(apical.captured(step, x, y))
    assert len(set(found)) == 10
    assert found == losses(step)


def test_a_number_read_back_is_named():
    net = nn.Linear(4, 3).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = (one.cuda() for one in BATCHES[0])

    def step(x, y):
        loss = criterion(net(x), y).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    call = apical.captured(step, x, y)
    with pytest.warns(UserWarning, match=r"waits for the device at test_on_a_gpu\.py:\d+"):
        assert len({call(x, y) for _ in range(6)}) == 6


def test_a_capture_that_fails_leaves_everything_as_it_was():
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3)).cuda()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = (one.cuda() for one in BATCHES[0])

    def step(x, y):
        loss = criterion(net(x), y).mean()
        loss.backward()
        torch.cuda.synchronize()  # PyTorch does not tell of this one.
        optimizer.step()
        optimizer.zero_grad()
        return loss

    call = apical.captured(step, x, y)
    with pytest.warns(UserWarning, match="runs as it is"):
        found = [call(x, y) for _ in range(6)]
    assert all(one.isfinite() for one in found)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
