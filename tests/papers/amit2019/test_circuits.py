"""The circuits of Appendix 1 against its tables."""

from __future__ import annotations

import numpy as np
import pytest

from apical.papers.amit2019 import circuits


def test_units_of_the_error_circuit_follow_the_tables():
    M, S, mu, eps = circuits.BOUND, circuits.THRESHOLD, circuits.MU, circuits.EPSILON
    H = np.array([2 * M + S + 0.1, 2 * M + S, M + 0.1, 0.0, -M - 0.1, -2 * M - S, -2 * M - S - 0.1])
    np.testing.assert_allclose(circuits.error_unit(H), [1 + eps, 1, 1, 0, -mu, -mu, -mu - eps])
    np.testing.assert_allclose(circuits.stop_unit(np.array([1 + eps, 1, 0, -mu, -mu - eps])), [1, 0, 0, 0, -1])


@pytest.mark.parametrize(
    ("s", "h", "expected"),
    [
        (1, 0.5, [1, 1, 1, 1]),
        (1, 1.0, [1, 1, 1, 1]),
        (1, 1.5, [1 + circuits.EPSILON, 0, 1 + circuits.EPSILON, 0]),
        (-1, -0.5, [-circuits.MU] * 4),
        (-1, -1.5, [-circuits.MU - circuits.EPSILON, 0, -circuits.MU - circuits.EPSILON, 0]),
    ],
)
def test_error_circuit_stays_or_cycles(s, h, expected):
    np.testing.assert_allclose(circuits.output_error(np.array([h]), s, 4)[:, 0], expected)


def test_shut_off_circuit():
    K = circuits.K
    delta = np.array([-K + 0.01, -0.3, 0.0, 0.3, K - 0.01])
    for x in (1.0, -1.0):
        np.testing.assert_array_equal(circuits.shut_off(np.array(x), delta), 0)
    for x in (0.99, -0.99, 0.0):
        np.testing.assert_array_equal(circuits.shut_off(np.array(x), delta), delta)
    assert circuits.shut_off(np.array(1.0), np.array(K)) == -K  # Why |delta| has to be smaller.


def test_the_shut_off_circuit_in_and_out_of_sequence():
    x, delta = np.array([-1.0, -0.5, 0.5, 1.0]), np.array([0.3, 0.3, -1.5, -0.3])
    np.testing.assert_array_equal(circuits.sequenced(x, delta, gates_first=True), [0, 0.3, -1.5, 0])
    # Gates that are set too late let a saturated unit's error pass, and shut off one that is as large as saturation.
    np.testing.assert_array_equal(circuits.sequenced(x, delta, gates_first=False), [0.3, 0.3, 0, -0.3])
