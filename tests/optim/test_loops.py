"""Loops that outsiders write: under LocalSGD they end as under torch.optim.SGD, or are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import apical
import comparison
from apical.losses import cross_entropy
from learning import spread
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import flat_chain

SETTINGS = {"plain": {}, "nesterov": {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}}


def optimizer_of(learner, local, **settings):
    if local:
        return apical.LocalSGD(learner, 0.05, **settings)
    return torch.optim.SGD(learner.model.parameters(), 0.05, **settings)


def trained(loop, rule, local, settings):
    net = flat_chain()
    asks = X.clone().requires_grad_()
    learner = apical.attach(net, rule, example_input=asks, generator=torch.Generator().manual_seed(3))
    optimizer = optimizer_of(learner, local, **settings)
    torch.manual_seed(4)
    for step in range(4):
        loop(net, optimizer, step)
    return net


def loss_of(net, x=X):
    return cross_entropy(net(x), Y).mean()


def train(net, optimizer, x=X):
    optimizer.zero_grad()
    loss_of(net, x).backward()
    optimizer.step()


def saliency_between(net, optimizer, step):
    optimizer.zero_grad()
    h = net[:3](X)
    loss = cross_entropy(net[3:](h), Y).mean()
    torch.autograd.grad(loss, h, retain_graph=True)
    loss.backward()
    optimizer.step()
    x = X.clone().requires_grad_()
    torch.autograd.grad(loss_of(net.eval(), x), x)
    net.train()


def fast_gradient_sign(net, optimizer, step):
    x = X.clone().requires_grad_()
    loss_of(net, x).backward()
    train(net, optimizer, (X + 0.1 * x.grad.sign()).detach())


def perceptual(net, optimizer, step):
    """A frozen network, attached too, as a loss."""
    torch.manual_seed(9)
    judge = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().requires_grad_(False)
    apical.attach(judge, "fa", example_input=torch.randn(8, 3, dtype=torch.float64, requires_grad=True))
    torch.manual_seed(10 + step)
    optimizer.zero_grad()
    cross_entropy(judge(net(X)), Y).mean().backward()
    optimizer.step()


def own_penalty_first(net, optimizer, step):
    optimizer.zero_grad()
    (0.01 * net[4].weight.square().sum()).backward()
    loss_of(net).backward()
    optimizer.step()


def zeros_kept(net, optimizer, step):
    optimizer.zero_grad(set_to_none=False)
    loss_of(net).backward()
    optimizer.step()


def by_closure(net, optimizer, step):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    assert optimizer.step(closure) is not None


def scheduled(net, optimizer, step):
    torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.5)
    with torch.no_grad():
        loss_of(net)
    train(net, optimizer)


def averaged(net, optimizer, step):
    train(net, optimizer)
    average = AveragedModel(net)
    average.update_parameters(net)
    comparison.equal(average.module.state_dict(), net.state_dict(), 0)


def hooked_for_a_while(net, optimizer, step):
    handle = net[4].weight.register_hook(lambda gradient: gradient / 2) if step % 2 else None
    train(net, optimizer)
    if handle is not None:
        handle.remove()


def two_batches_in_one_loss(net, optimizer, step):
    optimizer.zero_grad()
    (loss_of(net) + loss_of(net, X.flip(0))).backward()
    optimizer.step()


LOOPS = (
    saliency_between, fast_gradient_sign, perceptual, own_penalty_first, zeros_kept, by_closure, scheduled, averaged,
    hooked_for_a_while, two_batches_in_one_loss,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:the gradient of the feedback")
@pytest.mark.parametrize(("loop", "rule", "settings"), spread(LOOPS, ["fa", "kp"], SETTINGS.values()))
def test_a_loop_ends_as_with_torch(loop, rule, settings):
    own, its = (trained(loop, rule, local, settings) for local in (True, False))
    comparison.equal(own.state_dict(), its.state_dict(), 1e-12)


class Conditional(nn.Module):
    """A discriminator whose first synapse never sees what it judges."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.label, self.both, self.head = nn.Linear(3, 4), nn.Linear(9, 6), nn.Linear(6, 3)
        self.double()

    def forward(self, x, label):
        return self.head(torch.tanh(self.both(torch.cat([torch.tanh(self.label(label)), x], 1))))


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
@pytest.mark.parametrize("order", [1, -1], ids=["discriminator first", "generator first"])
def test_two_networks_against_each_other_each_with_its_own(rule, order):
    label = torch.eye(3, dtype=torch.float64)[Y]
    noise = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def train(local):
        judge = Conditional()
        torch.manual_seed(1)
        maker = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).double()
        shown = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), label
        seeds = (torch.Generator().manual_seed(n) for n in (3, 4))
        learners = [
            apical.attach(net, rule, example_input=x, generator=seed)
            for net, x, seed in ((judge, shown, next(seeds)), (maker, noise, next(seeds)))
        ]
        judges, makes = (optimizer_of(learner, local, momentum=0.9) for learner in learners)

        def discriminate():
            judges.zero_grad()
            real, fake = judge(torch.ones(8, 5, dtype=torch.float64), label), judge(maker(noise).detach(), label)
            (cross_entropy(real, Y).mean() - cross_entropy(fake, Y).mean()).backward()
            judges.step()

        def generate():
            makes.zero_grad()
            before = copy.deepcopy(judge.state_dict())
            cross_entropy(judge(maker(noise), label), Y).mean().backward()
            makes.step()
            comparison.equal(judge.state_dict(), before, 0)

        for one in (discriminate, generate)[::order] * 3:
            one()
        return {**judge.state_dict(), **{f"maker.{name}": value for name, value in maker.state_dict().items()}}

    comparison.equal(train(True), train(False), 1e-12)


@pytest.mark.parametrize("rule", ["fa", "kp"])
@pytest.mark.parametrize("how", ["two losses", "accumulation"])
def test_a_second_backward_pass_before_the_step_is_refused(how, rule):
    net = flat_chain()
    optimizer = optimizer_of(apical.attach(net, rule, example_input=X), True, momentum=0.9)
    output = net(X)
    cross_entropy(output, Y).mean().backward(retain_graph=True)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"'6' got a second backward pass before step\(\).*torch\.optim\.SGD"):
        (output.square().mean() if how == "two losses" else loss_of(net.eval())).backward()
    comparison.equal(net.state_dict(), before, 0)
    optimizer.step()


def test_a_gradient_penalty_is_refused_by_name():
    net = flat_chain()
    x = X.clone().requires_grad_()
    optimizer = optimizer_of(apical.attach(net, "fa", example_input=x), True)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(loss_of(net, x), x, create_graph=True)
    optimizer.step()
    comparison.equal(dict(net.named_parameters()), before, 0)
