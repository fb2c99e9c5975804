"""Outputs at several positions: each position hears its own error, whatever their number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import apical
from apical.networks.transformer import GPT
from learning import attach
from networks import exactly, seed
from pathways.test_factored import heard

V, WIDTH = 11, 8
OPTIONS = [{}, {"rank": 3}, {"shared": True}, {"seeded": True}, {"positions": "same"}]


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(vocabulary=V, context=12, width=WIDTH, depth=2, heads=2).double()


def tokens(rows: int, length: int, n: int = 0) -> Tensor:
    return torch.randint(V, (rows, length), generator=seed(n))


def criterion(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none").sum(1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_each_token_hears_its_own_error_at_any_length(options):
    model = gpt()
    learner = attach(model, apical.rule("dfa", **options), tokens(2, 5))
    assert learner.synapses["head"].feedback.shape == (options.get("rank", V), WIDTH)
    for rows, length in ((2, 5), (3, 12), (1, 1), (4, 7)):
        found = heard(model, learner, tokens(rows, length), tokens(rows, length, 1))
        e = found.pop("")[1].numpy()
        assert len(found) == 9
        for name, (_, signal) in found.items():
            D = learner.synapses[name].feedback.numpy()
            if "rank" in options:
                D = learner.synapses[name]._buffers["feedback_projection"].numpy() @ D
            np.testing.assert_allclose(signal.numpy(), np.einsum("ntv,vd->ntd", e, D), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
def test_errors_of_later_tokens_never_reach_earlier_ones(rule):
    """Nor does a token that is left out of the loss teach anything."""
    model = gpt()
    learner = attach(model, rule, tokens(2, 6))
    x, y = tokens(3, 6), tokens(3, 6, 1)
    found = heard(model, learner, x, y)
    y[:, 4] = (y[:, 4] + 1) % V
    changed = heard(model, learner, x, y)
    for name, (_, signal) in found.items():
        apart = (signal - changed[name][1]).abs().amax((0, 2))
        assert apart[4] > 1e-6, name
        assert not apart[[0, 1, 2, 3, 5]].any(), name
    y[:, 2:] = -100
    for name, (_, signal) in heard(model, learner, x, y).items():
        assert not signal[:, 2:].any(), name
        assert signal[:, :2].any(), name


@pytest.mark.parametrize("rank", [None, 3])
def test_kp_direct_learns_the_sum_over_tokens(rank):
    model = gpt()
    learner = attach(model, apical.rule("kp-direct", rank=rank), tokens(2, 6))
    found = heard(model, learner, tokens(3, 4), tokens(3, 4, 1))
    e = found.pop("")[1].numpy()
    for name, (x, _) in found.items():
        synapse = learner.synapses[name]
        rows = e if rank is None else e @ synapse._buffers["feedback_projection"].numpy()
        expected = np.einsum("ntv,ntd->vd", rows, x.numpy())
        np.testing.assert_allclose(synapse.feedback.grad.numpy(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", ["np-direct", "sg-direct", "mirror"])
@pytest.mark.parametrize("rank", [None, 3])
def test_feedback_learns_in_phases(rule, rank, monkeypatch):
    """By regression on the true gradient, as NumPy has it; by mirrors, towards the weights where nothing lies between."""
    monkeypatch.setattr("apical.phases.phase.estimates", exactly)
    if rule == "mirror":
        chosen = apical.Rule(apical.Direct(rank=rank), apical.Mirror(batch=64, rate=0.2, decay=1.0))
    else:
        chosen = apical.rule(rule, rank=rank, rate=0.05)
    model, x, y = gpt(), tokens(4, 6), tokens(4, 6, 1)
    learner = attach(model, chosen, tokens(2, 3))
    synapse = learner.synapses["head"]
    before = synapse.feedback.clone()
    found = heard(model, learner, x, y)
    learner.adapt(x, y, criterion)
    W = model.head.weight.detach().numpy()
    P = np.eye(V) if rank is None else synapse._buffers["feedback_projection"].numpy()
    if rule == "mirror":
        for _ in range(60):
            learner.adapt(x, y, criterion)
        wanted = torch.from_numpy(P.T @ W)
        assert nn.functional.cosine_similarity(synapse.feedback.flatten(), wanted.flatten(), 0) > 0.95
        return
    e = 24 * found[""][1].numpy()  # The mean over tokens went back; the criterion is their sum.
    rows, gradient = (e @ P).reshape(24, -1), (e @ W).reshape(24, -1)
    expected = before.numpy() - 0.05 / 4 * rows.T @ (rows @ before.numpy() - gradient)
    np.testing.assert_allclose(synapse.feedback.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_positions_apart_learn_as_samples_do():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(4, 3, 5, generator=seed(1)), torch.randint(3, (12,), generator=seed(2))
    attach(net, "dfa", x)
    found = []
    for batch in (x, x.flatten(0, 1)[:, None]):
        net.zero_grad()
        nn.functional.cross_entropy(net(batch).reshape(12, 3), y).backward()
        found.append({name: p.grad for name, p in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


class EveryStep(nn.Module):
    """A recurrent network [N, T, 4] -> [N, T, 3], whose synapses meet one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.step, self.write = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = torch.zeros(len(x), 5), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, t]) + self.step(h))
            outputs.append(self.write(h))
        return torch.stack(outputs, 1)


def test_where_not_all_activity_has_the_positions_of_the_output_the_error_is_that_of_the_whole_sample():
    x = torch.randn(8, 6, 4, generator=seed(1))
    assert attach(EveryStep(), "dfa", x).synapses["write"].feedback.shape == (6 * 3, 5)
    asked = apical.rule("dfa", per_position=True)
    with pytest.raises(ValueError, match=r"per_position=True, but activity at '\w+' has shape \[N, 5\]") as caught:
        attach(EveryStep(), asked, x)
    assert "at=[" in str(caught.value)
    assert "'fa'" in str(caught.value)
    maps = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Tanh(), nn.Conv1d(4, 4, 1))
    assert attach(maps, "dfa", torch.randn(2, 4, 5)).synapses["2"].feedback.shape == (20, 4, 5)
    with pytest.raises(ValueError, match="per_position=True, but activity at '2'"):
        attach(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Tanh(), nn.Conv1d(4, 4, 1)), asked, torch.randn(2, 4, 5))


def test_a_length_that_a_sample_as_a_whole_was_not_made_for_is_refused():
    model = gpt()
    learner = attach(model, apical.rule("dfa", per_position=False), tokens(2, 5))
    assert learner.synapses["head"].feedback.shape == (5 * V, 5, WIDTH)
    with pytest.raises(RuntimeError, match="size you train on"):
        model(tokens(2, 6))
    with pytest.raises(ValueError, match="one error a sample"):
        attach(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), apical.rule("dfa", per_position=True))
