"""Which connections exist is drawn as asked, or refused before anything changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from comparison import equal
from learning import RULES
from networks import convolutions, flat_chain, seed
from synapses.common import attach, learn, near, sgd, state, thin


@pytest.mark.parametrize("rule", ["fa", "usf", "wm", "dfa"])
def test_fractions_and_reciprocal_pairs_are_those_of_independent_draws(rule):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 150), nn.Tanh(), nn.Linear(150, 200))

    x = torch.zeros(2, 300)
    for forth, back in ((0.5, 0.5), (0.2, 0.7)):
        learner = apical.attach(
            net(), rule, example_input=x, generator=seed(), connectivity=apical.Connectivity(forth, back)
        )
        masks = [s.weight_mask for s in learner.synapses.values()]
        for mask in masks:
            near(mask, forth)
        synapse = learner.synapses["2"]
        near(synapse.feedback_mask, back)
        if rule != "dfa":
            near(synapse.weight_mask * synapse.feedback_mask, forth * back)
        near(masks[1].flatten()[:30_000] * masks[2].flatten()[:30_000], forth**2)
        if rule == "usf":  # Signs of weights that exist, where feedback does too.
            near(synapse.feedback.sign().abs(), forth * back)
        elif rule == "fa":
            near(synapse.feedback.sign().abs(), back)


def test_what_exists_keeps_its_values_and_biases_are_whole():
    plain, learner = flat_chain(), attach(flat_chain(), "fa")
    for name, synapse in learner.synapses.items():
        layer = plain.get_submodule(name)
        assert torch.equal(synapse.weight, layer.weight * synapse.weight_mask)
        assert torch.equal(synapse.bias, layer.bias)
    # Drawn from the weights as they were: thinned once, not twice.
    feedback, mask = learner.synapses["4"].feedback, learner.synapses["4"].feedback_mask
    assert ((feedback != 0) == mask.bool()).all()
    assert set(feedback[mask == 1].tolist()) <= set(plain[4].weight.flatten().tolist())


def test_the_generator_decides_and_all_rules_have_the_same_forward_connections():
    one, again, other = (attach(flat_chain(), "fa", n=n) for n in (3, 3, 4))
    equal(state(one), state(again))
    assert not torch.equal(one.synapses["1"].weight_mask, other.synapses["1"].weight_mask)
    for rule in RULES:
        learner = attach(flat_chain(), rule)
        for name, synapse in learner.synapses.items():
            assert torch.equal(synapse.weight_mask, one.synapses[name].weight_mask), rule
    net, before = flat_chain(), torch.get_rng_state()
    attach(net)
    assert torch.equal(torch.get_rng_state(), before)


def test_full_connectivity_is_no_connectivity():
    given = (None, 1, 1.0, {"": 1.0}, {}, apical.Connectivity())
    states = [state(attach(flat_chain(), "brsf", connectivity=value)) for value in given]
    assert not any("mask" in name for name in states[0])
    for one in states[1:]:
        equal(one, states[0])


def test_modules_by_name():
    def masked(**options):
        learner = attach(convolutions(), "fa", **options)
        return {
            name: (
                learner.connectivity[name] if s.sparse else None,
                "weight_mask" in s._buffers,
                "feedback_mask" in s._buffers,
            )
            for name, s in learner.synapses.items()
        }

    half, whole = (apical.Connectivity(0.5, 0.5), True, True), (None, False, False)
    assert masked(connectivity={"": 0.5, "8": 1.0}) == {"0": half, "3": half, "5": half, "8": whole}
    assert masked(connectivity={"8": 0.5}) == {"0": whole, "3": whole, "5": whole, "8": half}
    forth = apical.Connectivity(weight=0.5)
    assert masked(connectivity={"3": forth})["3"] == (forth, True, False)
    back = apical.Connectivity(feedback=0.5)
    assert masked(connectivity={"3": back})["3"] == (back, False, True)


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_fractions_out_of_range(value):
    for make in (lambda: apical.Connectivity(feedback=value), lambda: attach(flat_chain(), "fa", {"4": value})):
        with pytest.raises(ValueError, match=r"fraction of connections that exist, above 0 and at most 1, got"):
            make()


@pytest.mark.parametrize(
    ("rule", "value", "error", "says"),
    [
        ("fa", "half", TypeError, "connectivity must be a number, a Connectivity, or a dict"),
        ("fa", True, TypeError, "got True"),
        ("fa", {"4": None}, TypeError, "got None"),
        ("fa", {"": 0.5, "head": 1.0}, ValueError, "connectivity names 'head'.*its layers are '1', '4', '6'"),
        ("fa", {"2": 0.5}, ValueError, "connectivity names '2'"),
        (apical.rule("np", solver="ridge"), 0.5, ValueError, r"feedback of '1' is solved for as a whole.*solver='sgd'"),
    ],
)
def test_what_cant_be_thinned_is_told_before_anything_changes(rule, value, error, says):
    net = flat_chain()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(error, match=says):
        attach(net, rule, value)
    assert type(net[1]) is nn.Linear
    equal(net.state_dict(), before)


def test_ridge_regression_takes_thinned_weights():
    learner = attach(flat_chain(), apical.rule("np", solver="ridge"), apical.Connectivity(weight=0.5))
    learn(learner, sgd(learner), 2)
    assert thin(learner) == 3


def test_weights_shared_with_a_layer_that_is_not_thinned():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.middle, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)
            self.out.weight = self.embed.weight

        def forward(self, x):
            return self.out(torch.tanh(self.middle(self.embed(x))))

    with pytest.raises(ValueError, match="weights of 'out' are those of 'embed' as well, which is not thinned alike"):
        apical.attach(Tied(), "fa", connectivity=0.5)
    learner = apical.attach(Tied(), "fa", connectivity={"middle": 0.5})
    assert thin(learner) == 2


def test_a_failure_midway_leaves_the_weights_whole():
    def fail(tensor):
        raise RuntimeError("no")

    net = flat_chain()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="no"):
        attach(net, apical.rule("fa", init=fail))
    assert type(net[1]) is nn.Linear
    equal(net.state_dict(), before)
