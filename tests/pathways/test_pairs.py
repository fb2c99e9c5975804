"""Which pathway goes with which plasticity."""

from __future__ import annotations

import pytest
import torch

import apical
from learning import attach, gradients
from networks import chain

PAIRS = {
    (p, q): (q in ("fixed", "transport", "signs", "hebbian")) if p == "layer-wise" else q in goes
    for p, goes in (("layer-wise", ()), ("direct", ("fixed", "hebbian")), ("indirect", ("fixed",)), ("none", ()))
    for q in ("fixed", "transport", "signs", "hebbian")
}


@pytest.mark.parametrize(("pathway", "plasticity"), PAIRS)
def test_every_pair_is_a_rule_or_says_why_not(pathway, plasticity):
    if PAIRS[pathway, plasticity]:
        rule = apical.Rule(pathway=pathway, plasticity=plasticity)
        assert rule.name == f"{pathway}/{plasticity}"
        twin = {"layer-wise/fixed": "fa", "layer-wise/transport": "bp", "layer-wise/signs": "usf", "layer-wise/hebbian": "kp",
                "direct/fixed": "dfa", "direct/hebbian": "kp-direct", "indirect/fixed": "ifa"}[rule.name]  # fmt: skip
        model, named = chain().eval(), chain().eval()
        attach(model, rule), attach(named, twin)
        a, b = gradients(model), gradients(named)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    else:
        with pytest.raises(ValueError, match=rf"pathway '{pathway}'.*'{plasticity}'"):
            apical.Rule(pathway=pathway, plasticity=plasticity)


def test_pairs_given_as_objects_classes_and_nonsense():
    assert apical.Rule(apical.Direct(), apical.Fixed()).name == "direct/fixed"
    assert apical.Rule("layer_wise", "FIXED").name == "layer-wise/fixed"
    assert apical.Rule("none").plasticity.name == "none"
    for arguments, match in (
        ({"pathway": apical.LayerWise, "plasticity": "fixed"}, r"LayerWise\(\)"),
        ({"pathway": "sideways", "plasticity": "fixed"}, "unknown pathway 'sideways'.*layer-wise"),
        ({"pathway": "direct", "plasticity": "magic"}, "unknown plasticity 'magic'.*fixed"),
        ({"pathway": "direct"}, "needs feedback weights"),
        ({"pathway": 3, "plasticity": "fixed"}, "unknown pathway 3"),
    ):
        with pytest.raises(ValueError, match=match):
            apical.Rule(**arguments)
