"""The spiking network of Figure 4 against a simulation in NumPy that is given the same spikes, and laws of its dynamics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from apical.papers.lillicrap2016.spiking import Dynamics, SpikingNetwork, Stream

SIZES, STREAMS, RATE, DECAY = (7, 6, 5, 4), 3, 0.05, 1e-3
VARIANTS = [
    Dynamics(integration=integration, squash=squash, error=error, sweep=sweep)
    for integration, squash, error, sweep in itertools.product(
        ("new", "leak"), ("sigmoid", "tanh"), ("spikes", "probabilities"), ("within", "delayed")
    )
]


PAPER = Dynamics()


def network(dynamics: Dynamics = PAPER, sizes=SIZES, seed: int = 0, weights: float = 0.5) -> SpikingNetwork:
    generator = torch.Generator().manual_seed(seed)
    net = SpikingNetwork(sizes, dynamics, weights=weights, feedback=0.7, generator=generator, dtype=torch.float64)
    for b in net.biases:
        b.uniform_(-0.5, 0.5, generator=generator)
    return net


def at_rest(net: SpikingNetwork, streams: int) -> Stream:
    return net.at_rest(streams, torch.Generator().manual_seed(7))


def sigma(v):
    return 1 / (1 + np.exp(-v))


class Simulation:
    """One stream, unit by unit as the equations of reference 3.5 are written."""

    def __init__(self, net: SpikingNetwork) -> None:
        self.W = [w.numpy().copy() for w in net.weights]
        self.b = [b.numpy().copy() for b in net.biases]
        self.B = [b.numpy().copy() for b in net.feedback]
        self.V = [np.zeros(n) for n in SIZES[1:]]
        self.d = [np.zeros(n) for n in SIZES[1:]]
        self.s = [np.zeros(n) for n in SIZES]

    def step(self, how: Dynamics, spikes: list[np.ndarray], target: np.ndarray):
        """With all layers' spikes given; returns what this step adds to weights and biases."""

        def phi(v):
            return sigma(v) - 0.5 if how.squash == "sigmoid" else (1 - np.exp(-v)) / (1 + np.exp(-v))

        def integrate(old, new):
            return how.tau * old + new if how.integration == "leak" else (1 - how.tau) * old + how.tau * new

        m = len(self.W)
        pre = self.s if how.sweep == "delayed" else spikes
        old = [d.copy() for d in self.d]
        for k in range(m):
            total = [
                sum(self.W[k][i, j] * pre[k][j] for j in range(SIZES[k])) + self.b[k][i] for i in range(SIZES[k + 1])
            ]
            self.V[k] = integrate(self.V[k], np.array(total))
        self.d[m - 1] = target - (spikes[m] if how.error == "spikes" else sigma(self.V[m - 1]))
        for k in range(m - 2, -1, -1):
            above = phi(old[k + 1] if how.sweep == "delayed" else self.d[k + 1])
            back = [sum(above[i] * self.B[k][i, j] for i in range(len(above))) for j in range(SIZES[k + 1])]
            self.d[k] = integrate(self.d[k], np.array(back))
        moves = []
        for k in range(m):
            delta = RATE * phi(self.d[k]) * sigma(self.V[k]) * sigma(-self.V[k])
            moves.append((np.outer(delta, pre[k]), delta))
        self.s = spikes
        return moves


@pytest.mark.parametrize("how", VARIANTS, ids=str)
def test_it_evolves_and_learns_as_the_equations_say(how):
    net = network(how)
    stream = at_rest(net, STREAMS)
    alone = [Simulation(net) for _ in range(STREAMS)]
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.rand(STREAMS, SIZES[0], generator=draw, dtype=torch.float64)
        target = (torch.rand(STREAMS, SIZES[-1], generator=draw) < 0.3).double()
        net.advance(stream, x)
        net.teach(stream, target)
        net.learn(stream, RATE, DECAY)
        moves = []
        for n, one in enumerate(alone):
            moves.append(one.step(how, [s[n].numpy() for s in stream.spikes], target[n].numpy()))
            for k in range(len(SIZES) - 1):
                np.testing.assert_allclose(stream.potentials[k][n], one.V[k], rtol=1e-12, atol=1e-14)
                np.testing.assert_allclose(stream.signals[k][n], one.d[k], rtol=1e-12, atol=1e-14)
        for k in range(len(SIZES) - 1):
            W = alone[0].W[k] * (1 - STREAMS * DECAY) + sum(move[k][0] for move in moves)
            b = alone[0].b[k] * (1 - STREAMS * DECAY) + sum(move[k][1] for move in moves)
            np.testing.assert_allclose(net.weights[k], W, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(net.biases[k], b, rtol=1e-12, atol=1e-14)
            for one in alone:
                one.W[k], one.b[k] = W, b


def test_units_spike_as_often_as_sigma_of_their_potential():
    net = network(sizes=(3, 4), weights=2.0)
    stream = at_rest(net, 200_000)
    x = torch.tensor([0.1, 0.95, 0.0], dtype=torch.float64).expand(200_000, 3)
    net.advance(stream, x)
    assert set(stream.spikes[1].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(stream.spikes[0].mean(0), x[0], rtol=0, atol=0.005)
    by_spikes = stream.spikes[1].mean(0)
    torch.testing.assert_close(by_spikes, torch.sigmoid(stream.potentials[0]).mean(0), rtol=0, atol=0.005)
    assert (by_spikes - 0.5).abs().max() > 0.1


def test_an_image_leaves_a_tenth_of_its_potential_after_each_step_with_the_new_input_weighted_and_most_with_a_leak():
    for dynamics, left in ((PAPER, 0.1**5), (Dynamics(integration="leak"), 0.9**5)):
        net = network(dynamics, sizes=(7, 6))
        net.biases[0].zero_()
        stream = at_rest(net, 1)
        net.advance(stream, torch.ones(1, 7, dtype=torch.float64))
        V = stream.potentials[0].clone()
        for _ in range(5):
            net.advance(stream, torch.zeros(1, 7, dtype=torch.float64))
        torch.testing.assert_close(stream.potentials[0], left * V, rtol=1e-12, atol=0)


def test_with_delays_an_image_reaches_the_top_one_step_per_layer_after_the_input_spiked():
    for dynamics, steps in ((PAPER, 1), (Dynamics(sweep="delayed"), 1 + 4)):
        net = network(dynamics, sizes=(6, 6, 6, 6, 6))
        for W, b in zip(net.weights, net.biases, strict=True):
            W.fill_(50.0)
            b.fill_(-100.0)
        stream = at_rest(net, 1)
        needed = 0
        while not stream.spikes[-1].any():
            net.advance(stream, torch.ones(1, 6, dtype=torch.float64))
            needed += 1
        assert needed == steps


def test_a_single_layer_learns_as_much_as_gradient_descent_on_its_expected_error():
    """With the error from probabilities and a small one, phi is linear with slope 1/4: a quarter of squared error's step."""
    net = network(Dynamics(tau=1.0, error="probabilities"), sizes=(5, 3))
    stream = at_rest(net, 4)
    net.advance(stream, torch.full((4, 5), 0.5, dtype=torch.float64))
    W = net.weights[0].clone().requires_grad_()
    y = torch.sigmoid(stream.inputs[0] @ W.t() + net.biases[0])
    target = (y + 1e-4 * torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).detach()
    ((y - target).square().sum() / 2).backward()
    assert W.grad is not None
    net.teach(stream, target)
    net.learn(stream, 1.0, 0.0)
    torch.testing.assert_close(net.weights[0] - W.detach(), -W.grad / 4, rtol=1e-6, atol=1e-15)


def test_a_stream_and_a_network_go_on_from_what_they_kept():
    def run(steps, net, stream):
        for _ in range(steps):
            net.advance(stream, torch.full((2, 7), 0.5, dtype=torch.float64))
            net.teach(stream, torch.ones(2, 4, dtype=torch.float64))
            net.learn(stream, 0.1, 0.0)

    whole, stream = network(), at_rest(network(), 2)
    run(6, whole, stream)
    half, before = network(), at_rest(network(), 2)
    run(3, half, before)
    after, resumed = network(seed=5), at_rest(network(), 2)
    after.load_state_dict(half.state_dict())
    resumed.load_state_dict(before.state_dict())
    run(3, after, resumed)
    for a, b in zip(whole.weights, after.weights, strict=True):
        assert torch.equal(a, b)


def test_bad_sizes_and_constants_are_refused():
    with pytest.raises(ValueError, match="sizes must name the input and at least one layer"):
        network(sizes=(4,))
    with pytest.raises(ValueError, match=r"tau must be above 0 and at most 1, got 1\.5"):
        Dynamics(tau=1.5)
