"""The network of the speed-run: its first layer against NumPy, its start, and what a rule makes of it."""

import numpy as np
import pytest
import torch
from torch import nn

import apical
from apical.data import ImageData, Split
from apical.networks import Whitening, speedrun
from apical.training import TrainConfig
from apical.training.networks import OneNetwork


def correlated(n, channels=3, size=9):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, size, size, generator=g).cumsum(-1).cumsum(-2)
    return x + torch.tensor([0.5, -1.0, 2.0])[:channels, None, None]


def patches(x, kernel):
    """All patches of images [N, C, H, W] as rows [N (H - k + 1) (W - k + 1), C k k], by NumPy."""
    windows = np.lib.stride_tricks.sliding_window_view(x.double().numpy(), (kernel, kernel), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * kernel**2)


@pytest.mark.parametrize(("channels", "kernel"), [(3, 2), (1, 3)])
def test_whitened_patches_have_mean_nought_and_the_identity_for_covariance(channels, kernel):
    x, layer = correlated(40, channels), Whitening(channels, kernel, eps=0.0).double()
    layer.measure(x.split(7))
    size = channels * kernel**2
    y = layer(x.double()).permute(0, 2, 3, 1).flatten(0, 2).numpy()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(y[:, :size].T, bias=True), np.eye(size), atol=1e-8)
    np.testing.assert_array_equal(y[:, size:], -y[:, :size])
    # Up to order and sign, the eigenvectors of NumPy's covariance.
    rows = patches(x, kernel)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    weight = layer.convolution.weight[:size].flatten(1).numpy()
    np.testing.assert_allclose(np.abs(weight @ vectors), np.diag(values**-0.5), atol=1e-7)


def test_directions_that_do_not_vary_stay_small():
    x = correlated(20).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    layer = Whitening(3, eps=0.01)
    layer.measure([x])
    assert float(layer.convolution.weight.abs().max()) <= 0.01**-0.5 + 1e-5


def test_convolutions_start_with_copies_of_their_inputs():
    torch.manual_seed(0)
    first = speedrun(widths=(30, 12, 12))[2]
    x = torch.randn(2, 24, 5, 5)
    torch.testing.assert_close(first(x)[:, :24], x)
    assert not torch.equal(first(x)[:, 24:], x[:, :6])


def images(n=40):
    g = torch.Generator().manual_seed(1)
    split = Split(torch.randint(256, (n, 3, 32, 32), generator=g, dtype=torch.uint8), torch.arange(n) % 10)
    return ImageData("some", split, split, 10, tuple(map(str, range(10))))


def test_a_run_measures_the_first_layer_on_its_images_and_never_moves_it():
    data = images()
    config = TrainConfig(network="speedrun", normalize="own", augment="alternating-flip", rule="kp", batch=20)
    own = config.applied(data)
    made = OneNetwork(config, own)
    layer = made.learner.model[0]
    expected = Whitening(3)
    expected.measure([own.train.first(40)[0]])
    torch.testing.assert_close(layer.convolution.weight, expected.convolution.weight)
    for epoch in range(2):
        for number, (x, y) in enumerate(own.train.batches(20, 0, epoch)):
            made.engine.begin(2 * epoch + number, 20, 2)
            made.learn(x, y, lambda losses: None)
    assert torch.equal(layer.convolution.weight, OneNetwork(config, own).learner.model[0].convolution.weight)


@pytest.mark.parametrize("rule", ["bp", "kp", "usf", "wm", "fa"])
def test_the_first_layer_has_no_feedback_and_norms_have_no_scales_to_learn(rule):
    learner = apical.attach(speedrun(widths=(4, 4, 4)), rule, example_input=torch.zeros(2, 3, 32, 32))
    assert learner.synapses["0.convolution"].feedback is None
    assert all(one.feedback is not None for name, one in learner.synapses.items() if name != "0.convolution")
    assert not any(p.requires_grad for p in learner.model[0].parameters())
    norms = [one for one in learner.model.modules() if isinstance(one, nn.BatchNorm2d)]
    assert [one.weight.requires_grad for one in norms] == [False] * 6
