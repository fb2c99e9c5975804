import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apical import measures


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(degrees=st.floats(0, 180), n=st.integers(1, 4), f=st.integers(2, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_angle_of_vectors_built_at_a_known_angle(degrees, n, f, seed):
    basis = np.linalg.qr(rng(seed).normal(size=(f, f)))[0]
    theta = np.deg2rad(degrees)
    a = np.tile(3.0 * basis[0], (n, 1))
    b = np.tile(0.2 * (np.cos(theta) * basis[0] + np.sin(theta) * basis[1]), (n, 1))
    found = measures.angles(torch.tensor(a), torch.tensor(b)).numpy()
    np.testing.assert_allclose(found, degrees, atol=1e-6)


def test_obtuse_angles_are_not_folded():
    a = torch.tensor([[1.0, 0.0]])
    assert measures.angle(a, -a) == pytest.approx(180)
    assert measures.angle(a, torch.tensor([[-1.0, 1.0]])) == pytest.approx(135)


def test_angle_of_a_zero_row_is_undefined():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = measures.angles(a, torch.ones(2, 2))
    assert found[0] == pytest.approx(45)
    assert torch.isnan(found[1])


@given(seed=st.integers(0, 999), o=st.integers(1, 6), i=st.integers(2, 6))
@settings(deadline=None, max_examples=40)
def test_matrix_measures_against_numpy(seed, o, i):
    W, B = rng(seed).normal(size=(2, o, i))
    w, b = torch.tensor(W), torch.tensor(B)
    assert measures.relative_error(w, b) == pytest.approx(np.linalg.norm(W - B) / np.linalg.norm(W))
    assert measures.sign_congruence(w, b) == pytest.approx(np.mean(np.sign(W) == np.sign(B)))
    assert measures.correlation(w, b) == pytest.approx(np.corrcoef(W.ravel(), B.ravel())[0, 1])
    cosines = (W * B).sum(0) / np.linalg.norm(W, axis=0) / np.linalg.norm(B, axis=0)
    np.testing.assert_allclose(
        measures.unit_angles(w, b).numpy(), np.rad2deg(np.arccos(np.clip(cosines, -1, 1))), atol=1e-4
    )


def test_unit_angles_take_a_unit_outgoing_weights():
    W = torch.eye(3, dtype=torch.float64)
    B = W.clone()
    B[:, 1] = torch.tensor([1.0, 1.0, 0.0])
    np.testing.assert_allclose(measures.unit_angles(W, B).numpy(), [0, 45, 0], atol=1e-9)


def test_pseudo_inverse_measures_against_numpy():
    generator = rng(0)
    e, W, B = generator.normal(size=(5, 3)), generator.normal(size=(3, 7)), generator.normal(size=(3, 7))
    expected = e @ np.linalg.pinv(W).T
    np.testing.assert_allclose(measures.pseudo_backprop(torch.tensor(e), torch.tensor(W)).numpy(), expected)
    # Feedback whose pseudo-inverse, as lillicrap2016 writes it, is W itself.
    perfect = torch.tensor(np.linalg.pinv(W).T)
    assert measures.pseudo_inverse_angle(torch.tensor(W), perfect) == pytest.approx(0, abs=1e-5)
    assert measures.pseudo_inverse_angle(torch.tensor(W), torch.tensor(B)) > 30


def test_normalized_squared_error_is_one_for_the_mean_and_zero_for_the_target():
    targets = torch.tensor(rng(1).normal(size=(20, 4)) + 5)
    assert measures.normalized_squared_error(targets, targets) == 0
    assert measures.normalized_squared_error(targets.mean(0).expand_as(targets), targets) == pytest.approx(1)


def criteria_of(seed: int, n: int = 6, i: int = 5, o: int = 4):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    h, W, b = draw(n, i), draw(o, i), draw(o)
    a = h @ W.T + b
    return h, draw(n, i), torch.tanh(a), draw(n, o), W, 1 - torch.tanh(a) ** 2


@pytest.mark.parametrize("seed", range(5))
def test_alignment_criteria_obey_noeklands_identity_and_definition(seed):
    h, dh, h_upper, dh_upper, W, derivative = criteria_of(seed)
    found = measures.alignment_criteria(h, dh, h_upper, dh_upper, W, derivative)
    # Reference 1.21: ||dh_k|| L_k = ||dh_{k+1}|| L_{k+1}, both equal (dh_{k+1} * f') W dh_k^T.
    torch.testing.assert_close(dh.norm(dim=1) * found.L_lower, dh_upper.norm(dim=1) * found.L_upper)
    # L > 0 exactly where beta < 90 degrees.
    assert torch.equal(found.L_lower > 0, found.beta < 90)
    torch.testing.assert_close(found.K, found.K_lower + found.K_upper)


@pytest.mark.parametrize("seed", range(5))
def test_a_step_of_the_weights_raises_L_where_K_is_negative(seed):
    # Reference 1.21 with linear f: W moves by -dh_{k+1}^T h_k; to first order dL_k has the sign of -K_k.
    h, dh, _, dh_upper, W, _ = criteria_of(seed, n=1)
    ones = torch.ones_like(dh_upper)
    before = measures.alignment_criteria(h, dh, h @ W.T, dh_upper, W, ones)
    after = measures.alignment_criteria(h, dh, h @ W.T, dh_upper, W - 1e-6 * dh_upper.T @ h, ones)
    assert bool(((after.L_lower > before.L_lower) == (before.K_lower < 0)).all())


def test_shapes_that_differ_are_refused_with_both():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[3, 2\]"):
        measures.angle(torch.ones(2, 3), torch.ones(3, 2))
