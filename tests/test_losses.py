"""Losses and errors against NumPy."""

import numpy as np
import pytest
import torch

from apical.losses import LOSSES, error_rate


@pytest.mark.parametrize("name", LOSSES)
def test_losses_per_sample_against_numpy(name):
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 4, generator=g, dtype=torch.float64)
    targets = torch.randint(4, (6,), generator=g)
    z, y = outputs.numpy(), np.eye(4)[targets.numpy()]
    sigma = 1 / (1 + np.exp(-z))
    expected = {
        "cross-entropy": -(y * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1),
        "binary-cross-entropy": -(y * np.log(sigma) + (1 - y) * np.log(1 - sigma)).sum(1),
        "squared-error": 0.5 * ((z - y) ** 2).sum(1),
        "hinge": (y * np.maximum(1 - z, 0) + (1 - y) * np.maximum(1 + z, 0) / 3).sum(1),
    }[name]
    np.testing.assert_allclose(LOSSES[name](outputs, targets).numpy(), expected)


def test_error_rate_is_in_percent():
    assert error_rate(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 25
