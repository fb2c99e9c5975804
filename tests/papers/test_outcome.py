"""Rows that agree, and lines of curves."""

import pytest

from apical.papers import Curve, Line, Published, Row


def test_rows_agree_within_the_errors_of_both_or_ten_percent():
    assert Row("a", [2.0, 2.2, 2.4], Published(2.0, 0.1)).agrees
    assert Row("a", [2.1], Published(2.0)).agrees
    assert not Row("a", [2.1], Published(2.0), within=0.05).agrees
    assert Row("a", [2.0, 2.4], Published(2.0, 0.1), within=0.0).agrees
    assert not Row("a", [2.0, 12.0], Published(2.0)).agrees
    assert not Row("a", [2.0, 12.0], Published(2.0, 0.5)).agrees
    assert Row("a", [2.0], Published(1.0, to=3.0)).agrees
    assert Row("a", [3.2], Published(1.0, to=3.0)).agrees
    assert not Row("a", [0.5], Published(1.0, to=3.0)).agrees
    assert not Row("a", [3.5], Published(1.0, to=3.0)).agrees
    assert not Row("a", [2.3], Published(2.0)).agrees
    assert not Row("a", [float("nan")], Published(2.0)).agrees
    assert Row("a", [2.0]).agrees is None
    assert Row("a", [2.0], Published(2.0, tag="M")).agrees is None
    assert Row("a", [1.0, 3.0]).sem == pytest.approx(1.0)


def test_a_line_is_the_mean_over_the_seeds_that_are_there():
    line = Line.of("a", Curve([0, 1, 2], [[1.0, 3.0, float("nan")], [3.0, 3.0, float("nan")]]))
    assert line.x == [0, 1]
    assert line.y == [2.0, 3.0]
    assert line.spread == pytest.approx([1.0, 0.0])
