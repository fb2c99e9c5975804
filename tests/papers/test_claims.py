"""Statements that are judged by values, as far as these were measured."""

from apical.papers import Claim
from apical.papers.claims import Statement, judge

RULES = (
    Statement("fa is slower", ("fa", "bp"), lambda fa, bp: fa > bp, lambda fa, bp: f"{fa} against {bp}"),
    Statement("bp learns", ("bp",), lambda bp: bp < 10, lambda bp: f"{bp}"),
)


def test_statements_are_judged_in_their_order_with_the_values_in_theirs():
    assert judge(RULES, {"bp": 9, "fa": 12}) == [
        Claim("fa is slower", True, "12 against 9"),
        Claim("bp learns", True, "9"),
    ]
    assert [claim.holds for claim in judge(RULES, {"bp": 11, "fa": 11})] == [False, False]


def test_a_statement_may_be_undecided_and_says_whose_it_is():
    one = Statement("near", ("a",), lambda a: None if a < 1 else a > 2, str, "derived")
    assert [one.judged({"a": a}) for a in (0, 3)] == [
        Claim("near", None, "0", "derived"),
        Claim("near", True, "3", "derived"),
    ]


def test_a_statement_about_what_was_not_measured_makes_no_claim():
    assert [claim.text for claim in judge(RULES, {"bp": 9})] == ["bp learns"]
    assert judge(RULES, {}) == []
