"""The alignment of the linear network's weights against NumPy."""

import numpy as np
import pytest
import torch

import apical
from apical.papers.lillicrap2016.linear_function import TO_BP, network
from apical.papers.lillicrap2016.online import ByPseudoInverse, Pairs, Students, uniform
from apical.papers.lillicrap2016.scale_sweep import TO_INVERSE, TO_PBP, TO_TRANSPOSE, alignments
from papers.lillicrap2016.students import RATE, SEEDS, arrays


def test_alignments_are_those_of_numpy():
    rule = apical.rule("fa", init=uniform(0.5))
    students = Students(lambda seed: network(seed, 0.1), rule, SEEDS, inputs=30, rate=RATE)
    e = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1))
    found = alignments(students, e)

    def angle(a, b):
        return np.degrees(np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)))

    for place, (W, _, B) in enumerate(arrays(students, "1")):
        errors = e[place].double().numpy()
        to_bp = np.mean([angle(B.T @ one, W.T @ one) for one in errors])
        to_pbp = np.mean([angle(B.T @ one, np.linalg.pinv(W) @ one) for one in errors])
        assert found[TO_BP][place] == pytest.approx(to_bp, abs=1e-3)
        assert found[TO_PBP][place] == pytest.approx(to_pbp, abs=1e-3)
        assert found[TO_INVERSE][place] == pytest.approx(angle(W, np.linalg.pinv(B.T)), abs=1e-3)
        assert found[TO_TRANSPOSE][place] == pytest.approx(angle(W, B), abs=1e-3)


def test_pseudobackprop_sends_errors_through_the_pseudo_inverse_of_the_weights_as_they_are():
    students = ByPseudoInverse(
        lambda seed: network(seed, 0.25), apical.rule("fa", init=uniform(0.5)), SEEDS, inputs=30, rate=RATE
    )
    pairs = Pairs(SEEDS, 30, lambda x: x[:, :10])
    for step in range(2):
        (W0, W), x, y = ([s.weight.detach().double().clone() for s in students.learner.synapses.values()], *pairs(step))
        students.learn(x, y)
        now = students.learner.synapses["0"].weight.detach().double()
        for place, (before, after, through) in enumerate(zip(W0.chunk(2), now.chunk(2), W.chunk(2), strict=True)):
            one, target = x[place, 0].double(), y[place, 0].double()
            e = through @ before @ one - target
            moved = -RATE * torch.outer(torch.linalg.pinv(through) @ e, one)
            torch.testing.assert_close(after - before, moved, rtol=1e-3, atol=1e-5)
