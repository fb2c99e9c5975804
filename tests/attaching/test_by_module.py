"""Rules by name of module."""

from __future__ import annotations

import pytest

import apical
from apical.losses import cross_entropy
from networks import ResidualNet
from phases.common import X, Y


def test_each_layer_takes_the_rule_of_the_nearest_module_named():
    net = ResidualNet()
    learner = apical.attach(net, {"": "kp", "block": "wm", "block.conv2": "fa", "head": "bp"}, example_input=X)
    assert {name: rule.name for name, rule in learner.rules.items()} == {
        "stem": "kp", "block.conv1": "wm", "block.conv2": "fa", "head": "bp",
    }  # fmt: skip
    with pytest.raises(ValueError, match="different rules"):
        _ = learner.rule
    report = apical.audit(learner, X, Y, cross_entropy)
    assert [name for name, kind in report.transported.items() if kind == "weights"] == ["head"]


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        ({"": "fa", "hed": "wm"}, {}, "'hed', where the model has no layer"),
        ({"head": "fa"}, {}, r"nothing about 'stem', 'block.conv1', 'block.conv2'; .* add '': "),
        ({"": "fa", "norm": "wm"}, {}, "'norm', where the model has no layer that learns"),
        ({"": "fa", "head": "ifa"}, {"example_input": X}, "can't be mixed"),
        ({"": "fa", "head": "dfa"}, {}, "'dfa' needs example_input"),
        ({"": "dfa", "head": "kp-direct"}, {"example_input": X, "at": ["block"]}, "at= goes with one rule"),
        ({"": "fa", "head": "wmm"}, {}, "unknown rule 'wmm'; did you mean 'wm'"),
        ({}, {}, "nothing about"),
    ],
)
def test_bad_mappings_are_refused_and_the_model_stays_plain(rule, options, says):
    net = ResidualNet()
    kinds, keys = [type(m) for m in net.modules()], list(net.state_dict())
    with pytest.raises(ValueError, match=says):
        apical.attach(net, rule, **options)
    assert [type(m) for m in net.modules()] == kinds
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize(
    ("pathway", "plasticity", "says"),
    [
        ("indirect", "mirror", "no weights to mirror"),
        ("indirect", "perturbation", "no estimate of a gradient"),
        ("scalar", "fixed", "no feedback weights"),
    ],
)
def test_pairs_without_meaning(pathway, plasticity, says):
    with pytest.raises(ValueError, match=says):
        apical.Rule(pathway, plasticity)
