"""Threads: two that train a model each, and one that calls the model which another one trains, learn what one thread does."""

import sys
import threading

import pytest
import torch
from torch import nn

import apical
from faults.campaign.children import fork

pytestmark = pytest.mark.faults

RULES = ("fa", "kp", "dfa", "np", "np-direct", "sg", "wm", "usf", "brsf", "reinforce", "shallow", "ifa")
STEPS = 150


def made(rule, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
    generator = torch.Generator().manual_seed(seed + 99)
    return net, apical.attach(net, rule, example_input=torch.zeros(2, 12), generator=generator)


def learn(net, learner, seed, between=lambda: None):
    own = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    criterion = nn.CrossEntropyLoss(reduction="none")
    for _ in range(STEPS):
        x, y = torch.randn(16, 12, generator=own), torch.randint(4, (16,), generator=own)
        criterion(net(x), y).mean().backward()
        between()
        learner.adapt(x, y, criterion)
        optimizer.step()
        optimizer.zero_grad()


def same(net, other):
    return all(torch.equal(a, other.state_dict()[name]) for name, a in net.state_dict().items())


def ends_well(call, tmp_path):
    child = fork(call, tmp_path / "o", cwd=tmp_path).wait(120)
    return child.errors if child.code else ""


@pytest.mark.parametrize("rule", RULES)
def test_two_threads_with_a_model_each(tmp_path, figure, rule):
    other = RULES[(RULES.index(rule) + 5) % len(RULES)]

    def call():
        alone = [made(rule, 0), made(other, 1)]
        beside = [made(rule, 0), made(other, 1)]
        for seed, pair in enumerate(alone):
            learn(*pair, seed)
        threads = [threading.Thread(target=learn, args=(*pair, seed)) for seed, pair in enumerate(beside)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not all(same(a[0], b[0]) for a, b in zip(alone, beside, strict=True)):
            sys.exit("other weights")

    told = ends_well(call, tmp_path)
    figure(f"{rule} and {other}, a thread each", told or "bit-identical")
    assert not told


@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_is_called_by_another_thread_while_it_trains(tmp_path, figure, rule):
    def call():
        alone, beside = made(rule, 0), made(rule, 0)
        learn(*alone, 0)
        faults, done = [], threading.Event()

        def ask():
            x = torch.ones(3, 12)
            with torch.no_grad():
                while not done.is_set():
                    try:
                        beside[0](x)
                    except Exception as error:
                        faults.append(repr(error))
                        return

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            learn(*beside, 0)
        finally:
            done.set()
            thread.join()
        if faults or not same(alone[0], beside[0]):
            sys.exit(str(faults or "other weights"))

    told = ends_well(call, tmp_path)
    figure(f"{rule}, its model called by another thread", told[-80:].strip() or "bit-identical")
    assert not told
