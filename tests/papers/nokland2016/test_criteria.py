"""The criteria of theorem 1 against NumPy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from apical.papers.nokland2016.criteria import Layers, held_cost, held_error
from apical.papers.nokland2016.fig3 import activities
from apical.papers.nokland2016.training import Net, start


def test_a_step_of_the_weights_changes_l_by_what_the_theorem_says():
    """dL_k = -eta K_k ||da||^2, and L_{k+1} by the same times ||dh_k|| / ||dh_{k+1}||, with f' held."""
    rng = np.random.default_rng(0)
    h, dh, dh_upper = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), rng.normal(size=(6, 4))
    W, b = rng.normal(size=(4, 5)), rng.normal(size=4)
    upper = np.tanh(h @ W.T + b)
    layers = Layers(*(torch.from_numpy(one) for one in (h, dh, upper, dh_upper, W, b)))
    for sample in range(6):
        da = dh_upper[sample] * (1 - upper[sample] ** 2)
        K = dh[sample] @ h[sample] / np.linalg.norm(dh[sample])
        ratio = np.linalg.norm(dh[sample]) / np.linalg.norm(dh_upper[sample])
        found, raised = layers.step(sample, 1e-3, held_slope=True)
        assert found == pytest.approx(K)
        assert raised == pytest.approx(-1e-3 * K * (da @ da) * (1 + ratio))
        _, free = layers.step(sample, 1e-9, held_slope=False)
        assert free != raised
    assert layers.identity < 1e-15
    assert layers.steepest() < 1e-15


def test_held_directions_are_those_of_the_untrained_network():
    outputs, y = torch.randn(3, 10, dtype=torch.float64, requires_grad=True), torch.tensor([1, 2, 3])
    held_cost(outputs, y).sum().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, 0.5 - torch.eye(10, dtype=torch.float64)[y])
    assert torch.equal(held_error(outputs, y), outputs.grad)


def test_layers_of_the_theorem_are_those_that_dfa_trains(digits):
    learner = start(Net(2, 20), "dfa", digits, 0, zero=False)
    x, y = digits.train.batch(torch.arange(7))
    layers = Layers.of(learner, x.flatten(1), y, held=False)
    lower, upper = activities(learner.model, x.flatten(1))[1:]
    torch.testing.assert_close(layers.h_lower.float(), lower)
    torch.testing.assert_close(layers.h_upper.float(), upper)
    learner.model(x.flatten(1))
    outputs = learner.model(x.flatten(1))
    F.binary_cross_entropy_with_logits(outputs, F.one_hot(y, 10).float(), reduction="sum").backward()
    weight = learner.synapses["2"].weight.grad
    assert weight is not None
    torch.testing.assert_close(
        weight.double(), (layers.dh_upper * layers.slope).t() @ layers.h_lower, rtol=1e-4, atol=1e-6
    )
