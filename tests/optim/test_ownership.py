"""LocalSGD moves weights only in a backward pass that is its own: all others leave gradients as torch.optim.SGD has them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import apical
import comparison
from apical.losses import cross_entropy
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import flat_chain

RULES = ("fa", "kp", "dfa", "kp-direct", "np", "reinforce")


def attached(rule="fa", net=None, local=True, **options):
    """A network whose inputs may ask for a gradient, and its optimizer."""
    net = flat_chain() if net is None else net
    learner = apical.attach(
        net, rule, example_input=X.clone().requires_grad_(), generator=torch.Generator().manual_seed(3)
    )
    if local:
        return net, learner, apical.LocalSGD(learner, 0.1, 0.9, **options)
    return net, learner, torch.optim.SGD(net.parameters(), 0.1, 0.9, **options)


def both(loop, rule, make=flat_chain):
    """What a loop makes of a network under LocalSGD and under torch.optim.SGD is the same."""
    found = []
    for local in (True, False):
        net, learner, optimizer = attached(rule, make(), local)
        torch.manual_seed(4)
        loop(net, learner, optimizer)
        found.append(net.state_dict())
    comparison.equal(*found, 1e-12)


def train(net, learner, optimizer, x=X, y=Y, zero_grad=None):
    cross_entropy(net(x), y).mean().backward()
    learner.adapt(x, y, cross_entropy)
    optimizer.step()
    (zero_grad or optimizer.zero_grad)()


@pytest.mark.parametrize("rule", RULES[:-1])  # "reinforce" sends no signal to inputs.
def test_a_gradient_of_inputs_moves_nothing(rule):
    net, _, optimizer = attached(rule)
    net.eval()
    before = copy.deepcopy(net.state_dict())
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(net(x), Y).sum(), x)
    assert gradient.shape == x.shape
    optimizer.step()
    comparison.equal(net.state_dict(), before, 0)


@pytest.mark.parametrize("rule", RULES[:-1])
def test_adversarial_training_is_as_with_torch(rule):
    def loop(net, learner, optimizer):
        for how in ("grad", "backward", "grad", "backward"):
            x = X.clone().requires_grad_()
            loss = cross_entropy(net(x), Y).mean()
            if how == "grad":
                (gradient,) = torch.autograd.grad(loss, x)
            else:
                loss.backward()
                gradient = x.grad
                net.zero_grad()
            train(net, learner, optimizer, x.detach() + 0.1 * gradient.sign())

    both(loop, rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("order", ["discriminator first", "generator first"])
def test_a_generators_step_does_not_train_the_discriminator(rule, order):
    def loop(net, learner, optimizer):
        torch.manual_seed(1)
        generator = nn.Sequential(nn.Linear(5, 72), nn.Tanh()).double()
        its = torch.optim.SGD(generator.parameters(), 0.1)
        noise = torch.randn(8, 5, dtype=torch.float64)

        def discriminate():
            optimizer.zero_grad()
            train(net, learner, optimizer, generator(noise).detach())

        def generate():
            before = {name: p.detach().clone() for name, p in net.named_parameters()}
            cross_entropy(net(generator(noise)), Y).mean().backward()
            its.step()
            its.zero_grad()
            comparison.equal(dict(net.named_parameters()), before, 0)

        for one in (discriminate, generate)[:: 1 if order == "discriminator first" else -1] * 3:
            one()

    both(loop, rule)


@pytest.mark.filterwarnings("ignore:the gradient of the feedback")
@pytest.mark.parametrize("rule", ["fa", "kp", "np"])
@pytest.mark.parametrize("name", ["4.weight", "4.bias", "4.feedback"])
@pytest.mark.parametrize("kind", ["gradient", "accumulated", "several"])
def test_hooks_see_and_change_gradients(rule, name, kind):
    if name == "4.feedback" and rule != "kp":
        pytest.skip("its feedback has no gradient")
    heard = []

    def loop(net, learner, optimizer):
        parameter = net.get_parameter(name)
        if kind == "gradient":
            parameter.register_hook(lambda gradient: heard.append(gradient) or gradient / 2)
        elif kind == "accumulated":
            parameter.register_post_accumulate_grad_hook(lambda p: heard.append(p.grad.div_(2)))
        else:
            torch.autograd.graph.register_multi_grad_hook(list(net.parameters()), heard.append)
        for _ in range(3):
            train(net, learner, optimizer)

    both(loop, rule)
    assert len(heard) == 6


@pytest.mark.parametrize("rule", ["fa", "kp", "np", "dfa"])
def test_a_backward_pass_for_some_parameters_moves_these(rule):
    def loop(net, learner, optimizer):
        for wanted in (["4.weight"], ["4.bias", "6.weight"], ["2.weight"], []):
            chosen = [net.get_parameter(name) for name in wanted]
            x = X.clone().requires_grad_()
            cross_entropy(net(X if chosen else x), Y).mean().backward(inputs=chosen or [x])
            optimizer.step()
            optimizer.zero_grad()
            gradients = torch.autograd.grad(cross_entropy(net(X), Y).mean(), [net[4].weight, net[6].bias])
            assert all(bool(gradient.any()) for gradient in gradients)
            train(net, learner, optimizer)

    both(loop, rule)


@pytest.mark.parametrize("rule", ["fa", "kp", "np"])
def test_what_waits_is_dropped_by_zero_grad(rule):
    def loop(net, learner, optimizer):
        for seen in (True, False):
            net[4].weight.requires_grad_(True)
            output = net(X)
            optimizer.zero_grad()  # Between the forward and the backward pass it drops nothing.
            cross_entropy(output, Y).mean().backward()
            if rule == "np" and seen:
                optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
            train(net, learner, optimizer)

    both(loop, rule)


def test_moved_weights_that_no_step_closes_are_an_error():
    net, _, optimizer = attached()
    cross_entropy(net(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) before step\(\).*'1'.*torch\.autograd\.grad"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()


def test_a_rate_that_changes_between_backward_and_step_is_refused():
    net, _, optimizer = attached()
    cross_entropy(net(X), Y).mean().backward()
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(
        RuntimeError, match=r"learning rate of parameter group 0 has changed between backward\(\) and step\(\).*0\.1"
    ):
        optimizer.step()


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_is_not_finite_moves_nothing(rule, value):
    net, _, optimizer = attached(rule)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    with pytest.raises(RuntimeError, match=r"no finite gradient at '6'.*nothing has moved"):
        (cross_entropy(net(X), Y).mean() * float(value)).backward()
    comparison.equal(dict(net.named_parameters()), before, 0)
    optimizer.zero_grad()
    for large in (1e300, 1.0):  # Finite, whatever its sum is.
        (cross_entropy(net(X), Y).mean() * large).backward()
        optimizer.step()
        optimizer.zero_grad()
        net.load_state_dict(before, strict=False)


class Encoded(nn.Module):
    """Something that no synapse covers, before the first one; a layer that is used twice, in checkpoints or not."""

    def __init__(self, reentrant=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.first, self.again, self.head = (
            nn.LayerNorm(72), nn.Linear(72, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        )  # fmt: skip
        self.double()
        self.reentrant = reentrant

    def block(self, h):
        return torch.tanh(self.again(torch.tanh(self.again(h))))

    def forward(self, x):
        h = torch.tanh(self.first(self.norm(x.flatten(1))))
        return self.head(
            self.block(h) if self.reentrant is None else checkpoint(self.block, h, use_reentrant=self.reentrant)
        )


@pytest.mark.parametrize("reentrant", [None, False])
@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_an_input_that_the_optimizer_moves_is_its_own(rule, reentrant):
    net, _, optimizer = attached(rule, Encoded(reentrant))
    before = net.again.weight.detach().clone()
    cross_entropy(net(X), Y).mean().backward()
    assert net.again.weight.grad is None
    assert not torch.equal(net.again.weight, before)
    optimizer.step()

    def loop(net, learner, optimizer):
        for _ in range(3):
            train(net, learner, optimizer)

    both(loop, rule, lambda: Encoded(reentrant))


def test_a_layer_over_time_sees_data_first_and_its_own_output_then():
    class OverTime(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.flat, self.cell, self.head = nn.Flatten(), nn.Linear(72, 72), nn.Linear(72, 3)
            self.double()

        def forward(self, x):
            h = self.flat(x)
            for _ in range(3):
                h = torch.tanh(self.cell(h))
            return self.head(h)

    def loop(net, learner, optimizer):
        for step in range(4):
            x = X.clone().requires_grad_(step == 2)
            train(net, learner, optimizer, x)

    for rule in ("fa", "kp"):
        both(loop, rule, OverTime)


def test_an_encoder_with_an_optimizer_of_its_own_learns_with_the_head():
    def loop(net, learner, optimizer):
        torch.manual_seed(1)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.Tanh()).double()
        its = torch.optim.SGD(encoder.parameters(), 0.1)
        for _ in range(3):
            cross_entropy(net(encoder(X)), Y).mean().backward()
            its.step(), optimizer.step()
            its.zero_grad(), optimizer.zero_grad()

    both(loop, "fa")
