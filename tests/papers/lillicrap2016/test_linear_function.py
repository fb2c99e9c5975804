"""The linear network against NumPy."""

import numpy as np
import pytest
import torch

import apical
from apical.papers.lillicrap2016.fig2 import FIG2A
from apical.papers.lillicrap2016.linear_function import HIDDEN, INPUTS, OUTPUTS, network
from apical.papers.lillicrap2016.online import Pairs, uniform
from papers.lillicrap2016.students import IDENTITY, SEEDS, STEPS, by_hand, trained


@pytest.mark.parametrize("name", ["shallow", "bp", "fa"])
def test_the_linear_network_learns_by_the_equations(name):
    T = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(SEEDS, 30, lambda x: x @ T.t())
    rule = apical.rule(name, **({"init": uniform(0.5)} if name == "fa" else {}))
    before, after = trained(lambda seed: network(seed, 0.1), rule, pairs)
    for place, (start, found) in enumerate(zip(before, after, strict=True)):
        examples = [[t[place, 0].numpy().astype(float) for t in pairs(step)] for step in range(STEPS)]
        expected = by_hand(start, name, examples, IDENTITY)
        for (W, _, _), (ours, _, _) in zip(expected, found, strict=True):
            np.testing.assert_allclose(ours, W, rtol=1e-4, atol=1e-5)


def test_what_the_paper_prints():
    assert (INPUTS, HIDDEN, OUTPUTS) == (30, 20, 10)
    assert (FIG2A.weights, FIG2A.feedback, FIG2A.seeds) == (0.01, 0.5, 20)
    net = network(0, FIG2A.weights)
    assert [tuple(p.shape) for p in net.parameters()] == [(20, 30), (10, 20)]
    assert all(0.009 < float(p.detach().abs().max()) <= 0.01 for p in net.parameters())
