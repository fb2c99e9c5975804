"""Rules and hyperparameters that are none are named, with the way out."""

from __future__ import annotations

import re

import numpy as np
import pytest

import apical
from apical.training import options as spec
from attaching.refusals import assert_untouched, refused
from comparison import anatomy
from networks import plain_chain


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dfaa", "'dfa'"),
        ("FA", "'fa'"),
        ("usff", "'usf'"),
        ("kp_direct", "'kp-direct'"),
        ("matchd", "'matched'"),
        ("Shallow", "'shallow'"),
    ],
)
def test_an_unknown_rule_offers_the_nearest_names(name, near):
    message = refused(plain_chain(), name, says=(f"unknown rule {name!r}", "did you mean", near, "bp, shallow, fa"))
    assert message.index("did you mean") < message.index(near)
    with pytest.raises(ValueError, match="did you mean"):
        apical.rule(name)


def test_a_rule_like_nothing_lists_them_all():
    message = refused(plain_chain(), "zzzzzzzz", says=("unknown rule 'zzzzzzzz'", *apical.rules()))
    assert "did you mean" not in message
    refused(plain_chain(), "", says=("unknown rule ''",))


@pytest.mark.parametrize("rule", [3, None, apical.Rule, apical.LayerWise(), ["fa"], apical.Fixed()])
def test_a_rule_of_the_wrong_kind(rule):
    refused(plain_chain(), rule, TypeError, says=("rule must be a name, a Rule, or a dict", "kp-direct"))


def test_hyperparameters_that_a_rule_does_not_have():
    for arguments, says in (
        (("fa", {"epsilon": 1}), r"'fa' has no hyperparameter 'epsilon'; it has track, rank, .*, init"),
        (
            ("kp", {"epsilom": 1, "x": 2}),
            r"'kp' has no hyperparameter 'epsilom', 'x'; it has track, rank, .*, epsilon, init",
        ),
        (("shallow", {"init": 1}), r"'shallow' has no hyperparameter 'init'; it has none"),
        (("brsf", {"magnitudes": "uniform"}), r"no hyperparameter 'magnitudes'"),
        (("dfa", {"track": True}), r"no hyperparameter 'track'"),
    ):
        with pytest.raises(ValueError, match=says):
            apical.rule(arguments[0], **arguments[1])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kp", {"epsilon": -1}, "epsilon"),
        ("kp", {"epsilon": float("nan")}, "epsilon"),
        ("kp", {"epsilon": float("inf")}, "epsilon"),
        ("kp", {"epsilon": "1"}, "epsilon"),
        ("usf", {"scale": 0}, "scale"),
        ("usf", {"scale": -2.0}, "scale"),
        ("usf", {"scale": "big"}, "scale"),
        ("frsf", {"scale": 1.0}, "scale belongs to uniform"),
        ("frsf", {"init": "weights"}, "magnitudes of the weights"),
        ("fa", {"init": "xavier"}, "xavier"),
        ("fa", {"init": 3}, "init"),
    ],
)
def test_hyperparameters_out_of_range_are_named(name, value, says):
    model = plain_chain()
    before = anatomy(model)
    with pytest.raises((ValueError, TypeError), match=says):
        apical.attach(model, apical.rule(name, **value))
    assert_untouched(before, model)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"decay": "a"}, "decay must be a number, got 'a'"),
        ({"rate": None}, "rate must be a number, got None"),
        ({"rate": [1]}, "rate must be a number"),
        ({"rate": True}, "rate must be a number, got True"),
        ({"activation": [1]}, "activation must be a name or a function"),
        ({"batches": None}, "batches must be a whole number, got None"),
        ({"batches": 0}, "batches must be a whole number of at least 1, got 0"),
        ({"warmup": 1.5}, "warmup must be a whole number"),
        (
            {"alternate": "no", "bias_blocking": 1},
            "bias_blocking must be True or False, got 1; alternate must be True or False",
        ),
    ],
)
def test_a_mirror_of_values_of_the_wrong_kind(values, says):
    with pytest.raises(ValueError, match=says):
        apical.Mirror(**values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wm:rate=fast", "rule 'wm': rate must be a number, got 'fast'"),
        ("wm:rate=True", "rule 'wm': rate must be a number, got True"),
        ("wm:decay=fast", "rule 'wm': decay must be a number, got 'fast'"),
        ("wm:alternate=x", "rule 'wm': alternate must be True or False, got 'x'"),
        ("wm:batch=2.5", "rule 'wm': batch must be a whole number or None, got 2.5"),
        ("wm:baseline=none", "rule 'wm': baseline must be 'batch-mean' or a number, got 'none'"),
        ("wm:activation=3", "rule 'wm': activation must be a name or a function, got 3"),
        ("urfb:epsilon=True", "rule 'urfb': epsilon must be a number, got True"),
        ("np:solver=[1]", "rule 'np': solver must be 'sgd' or 'ridge', got [1]"),
        ("fa:track=1", "rule 'fa': track must be True or False, got 1"),
        ("SGD:momentum=abc", "SGD: momentum must be a number, got 'abc'"),
        ("SGD:nesterov=false", "SGD: nesterov must be True or False, got 'false'"),
        ("StepLR:step_size=1.5", "StepLR: step_size must be a whole number, got 1.5"),
    ],
)
def test_options_of_a_wrong_kind_are_told_with_the_right_one(text, says):
    of = {"SGD": spec.optimizer_of, "StepLR": spec.scheduler_of}.get(text.partition(":")[0], spec.rule_of)
    with pytest.raises(ValueError, match=re.escape(says)):
        of(text)


def test_every_rule_takes_what_it_has():
    for name, one in apical.rules().items():
        assert apical.rule(name, **one.hyperparameters) == one
        assert (
            apical.rule(name, **{key: np.float64(v) for key, v in one.hyperparameters.items() if type(v) is float})
            == one
        )


def test_pairs_without_meaning():
    for pathway, plasticity, says in (
        ("direct", "transport", "only that synapse's own error"),
        ("direct", "signs", "goes with layer-wise"),
        ("indirect", "hebbian", "direct or layer-wise"),
        ("none", "fixed", "would never be used"),
        ("layer-wise", None, "give plasticity=, one of fixed, transport"),
    ):
        with pytest.raises(ValueError, match=says):
            apical.Rule(pathway=pathway, plasticity=plasticity)
