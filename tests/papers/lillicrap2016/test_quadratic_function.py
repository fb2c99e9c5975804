"""The quadratic function and the angles of single units."""

import pytest
import torch

import apical
from apical.papers.lillicrap2016.quadratic_function import HIDDEN, INPUTS, OUTPUTS, box, quadratic, unit_angles


def test_the_quadratic_target_has_a_matrix_for_each_output():
    x = box((300, 20), torch.Generator().manual_seed(0))
    Q = torch.empty(20, 20, 20).uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(2016)).double().numpy()
    y = quadratic()(x).numpy()
    for row in (0, 17):
        for k in (0, 19):
            one = x[row].double().numpy()
            assert y[row, k] == pytest.approx(sum(one[i] * Q[k, i] @ one for i in range(20)), rel=1e-4, abs=1e-4)
    assert 1.9 < float(x.abs().max()) <= 2
    assert 7 < float(y.std()) < 8.6  # 7.8 by algebra, reference 3.6


def test_unit_angles_are_those_of_single_networks():
    W, B = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    for place in range(3):
        torch.testing.assert_close(
            unit_angles(W, B)[place], apical.measures.unit_angles(W[place], B[place]), rtol=1e-6, atol=1e-6
        )


def test_what_the_paper_prints():
    assert (INPUTS, HIDDEN, OUTPUTS) == (20, 1000, 20)
