"""A rule's ink: the same wherever it stands, and no two alike in one picture."""

from __future__ import annotations

import itertools

import pytest

import apical
from apical.report.drawing.colours import HUES, OWN, REFERENCE, darkened, inks


@pytest.mark.parametrize("names", list(itertools.permutations(("bp", "fa", "np", "kp:epsilon=0.5"))))
def test_rules_with_a_hue_of_their_own_have_it_in_any_company(names):
    chosen = inks(names)
    assert list(chosen) == list(names)
    assert chosen["bp"] == REFERENCE
    for name in ("fa", "kp:epsilon=0.5"):
        assert (chosen[name].light, chosen[name].dark) == HUES[OWN[name.partition(":")[0]]]
    assert len(set(chosen.values())) == len(names)


def test_all_rules_differ_and_more_names_than_inks_are_drawn_as_well():
    chosen = inks(apical.rules())
    assert len(set(chosen.values())) == len(chosen)
    assert len(inks(f"rule {index}" for index in range(40))) == 40


def test_the_same_rule_with_two_options_has_two_inks():
    chosen = inks(["kp:epsilon=0.5", "kp"])
    assert chosen["kp"] != chosen["kp:epsilon=0.5"]
    assert chosen["kp"].light in {light for light, _ in HUES}


def test_every_colour_of_a_figure_has_one_for_dark_pages():
    assert {light for light, _ in HUES} < darkened().keys()
