"""Signals that enter at synapses and at blocks are those of the equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learning import attach, gradients
from networks import IMAGES, Branching, X, Y


def test_direct_signals_in_a_branching_net_are_those_of_the_equations():
    """Each synapse of a residual, branching net gets e D at its input, and autograd takes it to the synapse before."""
    model = Branching().double().eval()
    x = IMAGES.double()
    learner = attach(model, "dfa", x)
    got = gradients(model, x)
    feedback = {name: s.feedback for name, s in learner.synapses.items()}
    assert feedback["stem"] is None
    assert feedback["left"].shape == (3, 4, 6, 6)
    # The same net by hand: every activity that enters a synapse is a leaf, and the leaves' cotangents are e D.
    plain = Branching().double().eval()
    stem = torch.relu(plain.norm(plain.stem(x)))
    entries, leaves = [], []

    def cut(name, h):
        entries.append((name, h))
        leaves.append(h.detach())
        return leaves[-1]

    inner = torch.relu(plain.block[0](cut("block.0", stem)))
    h = torch.relu(stem + plain.block[2](cut("block.2", inner)))
    left = plain.left(cut("left", h)).mean((2, 3))
    right = plain.right(cut("right", h)).amax((2, 3))
    joint = torch.cat([torch.tanh(torch.cat([left, right], 1)), plain.token(torch.zeros(8, dtype=torch.long))], 1)
    out = plain.head(cut("head", joint))
    e = torch.softmax(out.detach(), 1)
    e[range(8), Y] -= 1
    e /= 8
    signals = [torch.einsum("nc,c...->n...", e, feedback[name]) for name, _ in entries]
    torch.autograd.backward([out, *(h for _, h in entries)], [e, *signals])
    expected = {name: p.grad for name, p in plain.named_parameters()}
    assert got.keys() == expected.keys()
    for name, g in expected.items():
        torch.testing.assert_close(got[name], g, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_signals_at_blocks_go_layer_by_layer_inside_them():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh()),
        nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh()),
        nn.Linear(7, 3),
    ).double()
    x = X.double()
    learner = attach(net, "dfa", x, at=["0", "1"])
    got = gradients(net, x)
    assert net[0].feedback.shape == (3, 6)
    assert net[1].feedback.shape == (3, 7)
    assert {n: s.feedback is None for n, s in learner.synapses.items()} == {
        "0.0": True, "0.2": False, "1.0": True, "1.2": False, "2": True,
    }  # fmt: skip
    W = {n: (s.weight.detach(), s.bias.detach()) for n, s in learner.synapses.items()}
    h = [x]
    for n in ("0.0", "0.2", "1.0", "1.2"):
        h.append(torch.tanh(h[-1] @ W[n][0].T + W[n][1]))
    e = torch.softmax(h[-1] @ W["2"][0].T + W["2"][1], 1)
    e[range(8), Y] -= 1
    e /= 8
    d = {"2": e}
    d["1.2"] = (e @ net[1].feedback) * (1 - h[4] ** 2)
    d["1.0"] = (d["1.2"] @ learner.synapses["1.2"].feedback) * (1 - h[3] ** 2)
    d["0.2"] = (e @ net[0].feedback) * (1 - h[2] ** 2)
    d["0.0"] = (d["0.2"] @ learner.synapses["0.2"].feedback) * (1 - h[1] ** 2)
    for i, n in enumerate(("0.0", "0.2", "1.0", "1.2", "2")):
        torch.testing.assert_close(got[f"{n}.weight"], d[n].T @ h[i], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got[f"{n}.bias"], d[n].sum(0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
def test_a_block_may_be_a_single_layer_or_attach_refuses_it(rule):
    """at=["fc1"] reads as "the signal enters at fc1's output"; it must do that, or say at once that it can't."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = X.double()
    try:
        learner = attach(model, rule, x, at=["0", "2"])
    except ValueError as error:
        assert "'0'" in str(error)  # noqa: PT017
        return
    got = gradients(model, x)
    with torch.no_grad():
        h1 = torch.tanh(model[0](x))
        e = torch.softmax(model(x), 1)
    e[range(8), Y] -= 1
    D = [learner.blocks[n].feedback for n in ("0", "2")]
    torch.testing.assert_close(got["0.weight"], (e / 8 @ D[0]).T @ x)
    torch.testing.assert_close(got["2.weight"], (e / 8 @ D[1]).T @ h1)
