"""What can not be done side by side is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from replicas.common import NUMBERS, N, Parts, X, attached, chain


@pytest.mark.parametrize("rule", ["np-direct", "sg-direct"])
def test_rules_that_compare_losses_are_refused(rule):
    with pytest.raises(ValueError, match="one by one"):
        apical.attach(apical.replicate(chain(), 2), rule, example_input=X[:2])


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(x).softmax(1))


def hooked(register) -> nn.Sequential:
    model = chain()
    register(model)
    return model


def viewed() -> nn.Sequential:
    """An autoencoder whose decoder's weights are a view of the encoder's."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    model[2].weight = nn.Parameter(model[0].weight.detach().t())
    return model


HOOKS = {
    "1: Linear": lambda model: model[1].register_forward_hook(lambda *_: None),
    "3: Tanh": lambda model: model[3].register_full_backward_hook(lambda *_: None),
    "4: Linear": lambda model: apical.NoisyActivations(model, 1.0),
}


@pytest.mark.parametrize("name", HOOKS)
def test_networks_with_hooks_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} has hooks, .* replicas.model"):
        apical.replicate([chain(), hooked(HOOKS[name])])
    replicas = apical.replicate(chain(), 2)
    HOOKS[name](replicas.model)
    replicas(X[:2])


def tuned(kind, **numbers):
    replicas = apical.replicate(chain(), N)
    replicas.tune(kind(replicas.parameters(), lr=0.1), **numbers)


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda: apical.replicate(chain()), "n must be"),
        (lambda: apical.replicate(chain(), 0), "n must be"),
        (lambda: apical.replicate([chain()], 2), "leave n out"),
        (lambda: apical.replicate(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), 2), "1: LayerNorm mixes channels"),
        (lambda: apical.replicate(nn.Sequential(nn.Embedding(3, 3)), 2), "Embedding holds weight"),
        (lambda: apical.replicate([nn.Linear(3, 2), nn.Linear(3, 4)]), "network 2 is built otherwise"),
        (lambda: apical.replicate([Parts(["new", "tied"]), Parts(["new", "new"])]), "network 2 is built otherwise"),
        (lambda: apical.replicate([Parts(["new", "new"]), Parts(["new", "again"])]), "network 2 is built otherwise"),
        (lambda: apical.replicate(viewed(), 2), "2.weight lies in the memory of 0.weight"),
        (lambda: apical.replicate([chain(), attached(chain, "fa")[0]]), "attach all or none"),
        (lambda: apical.replicate([*attached(chain, "fa"), attached(chain, "kp")[0]]), "other rules"),
        (
            lambda: apical.replicate([*attached(chain, "wm"), attached(chain, apical.rule("wm", batches=2))[0]]),
            "different values of batches .* may differ in noise, rate, decay, init",
        ),
        (
            lambda: apical.attach(
                apical.replicate(chain(), 3),
                [apical.rule("kp-direct", **own) for own in NUMBERS["kp-direct"]],
                example_input=X,
                at=["5"],
            ),
            "one rule for all copies, and that of copy 2 differs",
        ),
        (
            lambda: apical.replicate([attached(chain, "dfa", at=at)[0] for at in (["3"], ["5"])]),
            r"network 2 is attached at= \['5'\]",
        ),
        (lambda: apical.attach(apical.replicate(chain(), 2), ["fa"], example_input=X[:2]), "a list of 2 for 2 copies"),
        (
            lambda: apical.attach(apical.replicate(chain(), 2), "fa", generator=[torch.Generator()]),
            "or 2 of them for 2 copies",
        ),
        (lambda: tuned(torch.optim.Rprop), "steps are proportional"),
        (lambda: tuned(torch.optim.SGD, rates=[1, 2]), "rates must be 3 numbers"),
        (lambda: tuned(torch.optim.AdamW, weight_decay=[0, 1, 2]), "weight_decay=0"),
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
