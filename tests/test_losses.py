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


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_samples_with_positions_are_means_over_them(name):
    g = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(6, 5, 4, generator=g, dtype=torch.float64), torch.randint(4, (6, 5), generator=g)
    each = torch.stack([LOSSES[name](outputs[:, t], targets[:, t]) for t in range(5)], 1)
    torch.testing.assert_close(LOSSES[name](outputs, targets), each.mean(1))
    rates = [error_rate(outputs[:, t], targets[:, t], 2) for t in range(5)]
    assert error_rate(outputs, targets, 2) == pytest.approx(np.mean(rates))
    assert error_rate(outputs, targets) == 100 * float((outputs.argmax(2) != targets).double().mean())


def test_error_rate_is_in_percent():
    assert error_rate(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 25
