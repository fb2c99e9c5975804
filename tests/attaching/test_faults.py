"""Models that no rule can be attached to are left untouched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import apical
from apical.plasticity import Plasticity
from attaching.refusals import Named, assert_untouched, refused
from comparison import anatomy
from networks import X, plain_chain


@pytest.mark.parametrize("model", [lambda x: x, 3, None, "resnet18", nn.Linear, {"a": nn.Linear(1, 1)}])
def test_a_model_that_is_no_module(model):
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got"):
        apical.attach(model, "fa")


@pytest.mark.parametrize(
    "model", [nn.Sequential(), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.LayerNorm(4), nn.Embedding(3, 4)]
)
def test_a_model_without_synapses(model):
    refused(model, says=("no layer with weights",))


class Strange(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.kernel = nn.Parameter(torch.eye(4))
        self.register_parameter("nothing", None)

    def forward(self, x):
        return self.inner(x) @ self.kernel


def Buffered(name):
    layer = nn.Linear(4, 4)
    value = layer._parameters.pop(name).detach()
    layer.register_buffer(name, value)
    return layer


class MixingNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        self.mix = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        return super().forward(x) @ self.mix


UNKNOWN = {
    "subclass": (
        lambda: Strange(4, 4),
        ("1: Strange subclasses Linear", "register_synapse(Strange, apical.LinearSynapse)"),
    ),
    "raw": (lambda: Raw(), ("1: Raw holds kernel", "register_synapse(Raw, ...)", "register_synapse(Raw, None)")),
    "lazy linear": (lambda: nn.LazyLinear(4), ("1: LazyLinear", "run one forward pass")),
    "lazy convolution": (lambda: nn.LazyConv2d(4, 3), ("1: LazyConv2d", "run one forward pass")),
    "lazy norm": (lambda: nn.LazyBatchNorm1d(), ("1: LazyBatchNorm1d", "run one forward pass")),
    "parametrized norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm(4)),
        ("1: ParametrizedLayerNorm computes weight", "parametrize.remove_parametrizations(layer, 'weight')"),
    ),
    "buffer": (lambda: Buffered("weight"), ("1: Linear has its weight as no parameter", "nn.Parameter")),
    "bias as a buffer": (lambda: Buffered("bias"), ("1: Linear has its bias as no parameter", "nn.Parameter")),
    "mixing norm": (lambda: MixingNorm(4), ("1: MixingNorm holds mix,", "register_synapse(MixingNorm, None)")),
}


@pytest.mark.parametrize("rule", ["fa", "bp", "dfa"])
@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_layer_that_is_no_known_synapse(kind, rule):
    make, says = UNKNOWN[kind]
    model = nn.Sequential(nn.Linear(4, 4), make())
    message = refused(model, rule, says=(*says, "Sequential"), example_input=X)
    assert "\n- 0:" not in message
    assert message.count("\n- ") == 1


def test_every_fault_is_told_at_once():
    model = nn.Sequential(nn.Linear(4, 4), Strange(4, 4), nn.LazyLinear(4), Raw())
    message = refused(model, "dfa", says=("1: Strange", "2: LazyLinear", "3: Raw", "needs example_input"))
    assert message.count("\n- ") == 4
    assert "inner" not in message


def test_a_model_that_is_itself_the_fault():
    refused(Raw(), says=("(the model itself): Raw holds kernel",))


def test_the_way_out_named_by_the_message_is_one(registered):
    model = nn.Sequential(nn.Linear(4, 4), Raw())
    refused(model, says=("register_synapse(Raw, None)",))
    registered(Raw, None)
    apical.attach(model, "fa")
    model(X).sum().backward()
    assert model[1].kernel.grad is not None
    apical.learner_of(model).detach()

    class Same(nn.Linear):
        pass

    model = nn.Sequential(Same(4, 4))
    refused(model, says=("register_synapse(Same, apical.LinearSynapse)",))
    registered(Same, apical.LinearSynapse)
    apical.attach(model, "fa")


@pytest.mark.parametrize("again", ["fa", "dfa", "bp"])
def test_attaching_twice(again):
    model = Named()
    learner = apical.attach(model, "fa")
    keys = list(model.state_dict())
    for part in (model, nn.Sequential(model)):
        with pytest.raises(ValueError, match=r"body\.0' is attached already; .*detach\(\)"):
            apical.attach(part, again, example_input=X)
    assert apical.learner_of(model) is learner
    assert list(model.state_dict()) == keys
    assert learner.rule.name == "fa"
    model(X).sum().backward()
    apical.learner_of(model).detach()
    apical.attach(model, again, example_input=X)


def test_the_way_out_of_attaching_around_an_attached_part_names_that_part():
    """learner_of(model) fails for the outer model: the message has to say whose learner it is."""
    part = plain_chain()
    apical.attach(part, "fa")
    outer = nn.Sequential(nn.Linear(4, 4), part)
    with pytest.raises(ValueError, match="attached already") as caught:
        apical.attach(outer, "fa")
    with pytest.raises(ValueError, match="nothing is attached"):
        apical.learner_of(outer)
    assert "learner_of(model)" not in str(caught.value) or "1" in str(caught.value).split("learner_of")[1]


AFTER = {
    "pruned weight": ("weight", lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "pruned bias": ("bias", lambda layer: prune.l1_unstructured(layer, "bias", 0.5)),
    "weight_norm": ("weight", nn.utils.parametrizations.weight_norm),
}


@pytest.mark.parametrize("rule", ["fa", "bp", "dfa", "kp", "usf"])
@pytest.mark.parametrize("way", AFTER)
def test_a_parametrization_put_on_after_attach(way, rule):
    name, put_on = AFTER[way]
    model = plain_chain()
    apical.attach(model, rule, example_input=X)
    put_on(model[2])
    with pytest.raises(RuntimeError, match=rf"the {name} of '2' is a parameter no longer.*take that off.*connectivity"):
        model(X).sum().backward()


def test_a_plasticity_of_ones_own_that_does_not_go_with_the_pathway():
    @dataclass(frozen=True)
    class Own(Plasticity):
        name: ClassVar[str] = "own"
        pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise"})

    with pytest.raises(ValueError, match="'direct' with plasticity 'own' has no meaning; 'own' goes with layer-wise"):
        apical.Rule("direct", Own())


def test_a_generator_of_the_wrong_kind():
    for generator in (0, "seed", torch.manual_seed):
        model = plain_chain()
        before = anatomy(model)
        with pytest.raises((TypeError, AttributeError), match="enerator"):
            apical.attach(model, "fa", generator=generator)
        assert_untouched(before, model)
