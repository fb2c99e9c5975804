"""What hooks make of weights around a forward pass is no transport; and it hides none."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from learning import RULES
from networks import X, Y, plain_chain, seed

HIDDEN = dict.fromkeys(RULES, "nothing") | {
    "bp": "weights",
    "sg": "weights",
    "sg-direct": "weights",
    **dict.fromkeys(("usf", "brsf", "frsf"), "signs"),
}


def coarse(weight: torch.Tensor) -> torch.Tensor:
    return (weight * 4).round() / 4


def quantised(layer: nn.Module) -> None:
    """For as long as a pass takes, in place."""
    kept = []

    def before(module, args):
        kept.append(module.weight.data.clone())
        module.weight.data.copy_(coarse(module.weight.data))

    def after(module, args, output):
        module.weight.data.copy_(kept.pop())

    layer.register_forward_pre_hook(before), layer.register_forward_hook(after)


def quantised_anew(layer: nn.Module) -> None:
    """From a master copy that lies elsewhere, in new memory each time."""
    master = layer.weight.data.clone()

    def before(module, args):
        module.weight.data = coarse(master)

    def after(module, args, output):
        module.weight.data = master.clone()

    layer.register_forward_pre_hook(before), layer.register_forward_hook(after)


def clipped(layer: nn.Module) -> None:
    """For good, before each pass."""

    def before(module, args):
        module.weight.data.clamp_(-0.2, 0.2)

    layer.register_forward_pre_hook(before)


def noisy(layer: nn.Module) -> None:
    kept = []

    def before(module, args):
        kept.append(module.weight.data)
        module.weight.data = module.weight.data + 0.1 * torch.randn(module.weight.shape)

    def after(module, args, output):
        module.weight.data = kept.pop()

    layer.register_forward_pre_hook(before), layer.register_forward_hook(after)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("hook", [quantised, clipped])
def test_every_rule_under_hooks_is_judged_as_without(rule, hook):
    net = plain_chain()
    learner = apical.attach(net, rule, example_input=X, generator=seed())
    for synapse in learner.synapses.values():
        hook(synapse)
    before = [p.clone() for p in net.parameters()]
    found = apical.audit(learner, X, Y, cross_entropy).transported
    assert found == {"0": "nothing", "2": HIDDEN[rule], "4": HIDDEN[rule]}
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("rule", ["bp", "usf", "fa", "dfa", "ifa"])
@pytest.mark.parametrize("hook", [quantised_anew, noisy])
def test_weights_put_in_place_for_a_pass_hide_nothing(rule, hook):
    net = plain_chain()
    learner = apical.attach(net, rule, example_input=X, generator=seed())
    for synapse in learner.synapses.values():
        hook(synapse)
    found = apical.audit(learner, X, Y, cross_entropy).transported
    assert found == {"0": "nothing", "2": HIDDEN[rule], "4": HIDDEN[rule]}


class Quantising(nn.Sequential):
    @contextmanager
    def quantised(self):
        held = [(p, p.data) for p in self.parameters()]
        for p, value in held:
            p.data = coarse(value)
        yield
        for p, value in held:
            p.data = value

    def forward(self, x):
        with self.quantised():
            return super().forward(x)


@pytest.mark.parametrize(
    ("rule", "hidden"), [("fa", "nothing"), ("dfa", "nothing"), ("usf", "signs"), ("bp", "weights")]
)
def test_a_forward_pass_that_quantises_for_itself(rule, hidden):
    net = Quantising(*plain_chain())
    found = apical.audit(apical.attach(net, rule, example_input=X), X, Y, cross_entropy).transported
    assert found == {"0": "nothing", "2": hidden, "4": hidden}


@pytest.mark.parametrize("hook", [quantised, clipped])
def test_a_transport_by_a_backward_hook_is_found_beside_them(hook):
    net = plain_chain()
    learner = apical.attach(net, "fa", example_input=X, generator=seed())
    net[2].register_full_backward_hook(lambda module, into, out: (out[0] @ module.weight,))
    hook(net[2])
    found = apical.audit(learner, X, Y, cross_entropy).transported
    assert found == {"0": "nothing", "2": "weights", "4": "nothing"}


def test_alignment_leaves_weights_that_hooks_clip():
    net = plain_chain()
    learner = apical.attach(net, "fa", example_input=X)
    clipped(net[2])
    before = net[2].weight.clone()
    apical.alignment(learner, X, Y, cross_entropy)
    assert torch.equal(net[2].weight, before)


@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "dfa", "wm", "np", "sg", "reinforce"])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_gradients_that_are_sparse(rule, kind):
    found = []
    words = torch.randint(9, (8, 2), generator=seed())
    for sparse in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(kind(9, 4, sparse=sparse), nn.Flatten(), nn.LazyLinear(6), nn.Tanh(), nn.Linear(6, 3))
        net(words)
        learner = apical.attach(net, rule, example_input=words, generator=seed())
        report = apical.audit(learner, words, Y, cross_entropy)
        cross_entropy(net(words), Y).mean().backward()
        learner.adapt(words, Y, cross_entropy)
        learned = {name: p.grad.to_dense() for name, p in net.named_parameters() if p.grad is not None}
        found.append((report, learned, apical.alignment(learner, words, Y, cross_entropy)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][2].keys() == found[1][2].keys()
