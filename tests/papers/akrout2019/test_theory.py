"""The paper's derivations against closed forms."""

from __future__ import annotations

import numpy as np

from apical.papers import find


def test_kolen_pollack_difference_shrinks_as_printed(theory):
    curve = theory["kp difference"].curves["decay 1e-3 a step"]
    np.testing.assert_allclose(curve.values, np.tile(0.999 ** np.asarray(curve.x), (2, 1)), rtol=1e-12)
    for found in theory["kp difference"].numbers.values():
        assert max(found) < 1e-12


def test_costs(theory):
    numbers = theory["flops"].numbers
    assert numbers["kp"] == [0, 0]  # The product is W's own.
    assert numbers["wm"] == [4 * 100 * 20] * 2  # A noisy forward pass and a product.
    assert numbers["kp, Appendix B"] == [20 + 4 * 100 * 20] * 2


def test_all_statements_hold_in_a_short_run(theory):
    outcome = find("akrout2019/theory").outcome(theory)
    assert len(outcome.claims) == 7
    assert all(claim.holds for claim in outcome.claims)
