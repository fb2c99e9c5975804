"""Signals through few directions of the error: their NumPy form, and the laws that they leave as they are."""

import numpy as np
import pytest
import torch
from torch import nn

import apical
from apical.networks import LocallyConnected2d
from apical.pathways import LayerWise
from apical.pathways.subspace import aside, give
from networks import seed
from numeric import reference as ref
from numeric.streams import HEBBIAN, ROUNDING, attach, build, distance, step, stream, weights, with_feedback

TOLERANCE = 1e-9
LAYERS = {
    "linear": (lambda: nn.Linear(5, 6), (7, 5)),
    "linear, of sequences": (lambda: nn.Linear(5, 6), (3, 4, 5)),
    "1d, padded": (lambda: nn.Conv1d(2, 6, 3, padding=2), (3, 2, 7)),
    "strides": (lambda: nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 3, 7, 6)),
    "dilation": (lambda: nn.Conv2d(3, 6, 3, dilation=2, padding=1, bias=False), (3, 3, 7, 6)),
    "groups": (lambda: nn.Conv2d(4, 12, 3, groups=2, padding=1), (3, 4, 5, 5)),
    "3d": (lambda: nn.Conv3d(2, 6, 2, stride=2), (2, 2, 4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 12, 3, stride=2, padding=1, groups=2), (3, 4, 4, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(3, 6, 2, dilation=2), (3, 3, 6)),
    "channels last": (lambda: nn.Conv2d(4, 12, 3, groups=2).to(memory_format=torch.channels_last), (3, 4, 5, 5)),
    "locally connected": (lambda: LocallyConnected2d(4, 12, 3, 5, groups=2), (3, 4, 5, 5)),
}


def numpy_signal(layer, P, B, delta, shape):
    """(delta P^T)(P B), group by group, and back through the layer's geometry with r outputs for each."""
    if isinstance(layer, nn.Linear):
        return (delta @ P.T) @ (P @ B)
    groups, transposed = layer.groups, "Transpose" in type(layer).__name__
    P = P.reshape(groups, -1, P.shape[1])
    few = np.einsum("ngo...,gro->ngr...", delta.reshape(len(delta), groups, -1, *delta.shape[2:]), P)
    few = few.reshape(len(delta), -1, *delta.shape[2:])
    own = B.reshape(groups, -1, *B.shape[1:])
    own = np.einsum("gio...,gro->gir..." if transposed else "go...,gro->gr...", own, P)
    own = own.reshape(-1, *own.shape[2:])
    if isinstance(layer, LocallyConnected2d):  # Every position by itself, where the kernel meets the map.
        signal = np.zeros(shape)
        for row, column in np.ndindex(3, 3):
            here, its = few[:, :, row, column], own[:, row, column]
            here, its = here.reshape(len(few), groups, -1), its.reshape(groups, -1, *its.shape[1:])
            met = np.einsum("ngr,grikl->ngikl", here, its).reshape(len(few), -1, 3, 3)
            signal[:, :, row : row + 3, column : column + 3] += met
        return signal
    if transposed:
        kind = ref.TransposedConvolution(
            layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding, groups
        )
    else:
        sides = tuple((n, n) for n in layer.padding)
        kind = ref.Convolution(layer.kernel_size, layer.stride, sides, layer.dilation, groups)
    return kind.feed_back(few, own, shape)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rank", [1, 2])
def test_gradients_are_those_of_the_form_in_numpy(name, rank):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    whole, layer = make().double(), make().double()
    whole.load_state_dict(layer.state_dict())
    full = apical.attach(whole, apical.rule("kp", track=True), generator=seed(1)).synapses[""]
    rule = apical.rule("kp", track=True, rank=rank, subspace="random")
    synapse = apical.attach(layer, rule, generator=seed(1)).synapses[""]
    assert synapse.projection.shape == (rank * getattr(layer, "groups", 1), 6)
    x = torch.randn(shape, generator=seed(2), dtype=torch.float64)
    if name == "channels last":
        x = x.to(memory_format=torch.channels_last)
    one, other = (x.clone().requires_grad_() for _ in range(2))
    delta = torch.randn(layer(x).shape, generator=seed(3), dtype=torch.float64)
    layer(one).backward(delta), whole(other).backward(delta)
    P, B = ref.numbers(synapse.projection), ref.numbers(synapse.feedback)
    expected = numpy_signal(layer, P, B, ref.numbers(delta), shape)
    assert ref.relative_error(ref.numbers(one.grad), expected) < TOLERANCE
    assert ref.relative_error(ref.numbers(other.grad), expected) > 0.1
    for parameter, its in zip(synapse.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, its.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 0.5, "auto"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
@pytest.mark.parametrize("rule", HEBBIAN)
def test_the_law_of_kolen_and_pollack_stays(rule, name, rank):
    """W_t - B_t = (1 - eta lambda)^t (W_0 - B_0), while P turns at every other step."""
    net, shape = build(name)
    learner = attach(net, rule, shape, rank=rank, every=2)
    own = with_feedback(learner).values()
    assert any(synapse.subspace is not None for synapse in own) == (rank != "auto")
    directions = [synapse.projection.clone() for synapse in own if synapse.subspace is not None]
    before, started = gaps(learner), weights(learner)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, weight_decay=0.1)
    for _, batch in zip(range(30), stream(shape), strict=False):
        step(net, batch, optimizer)
    assert distance(weights(learner), started) > 0.01
    assert distance(gaps(learner), {n: (1 - 0.05 * 0.1) ** 30 * gap for n, gap in before.items()}) < ROUNDING
    turned = [synapse.projection for synapse in own if synapse.subspace is not None]
    assert all(not torch.allclose(one, other) for one, other in zip(directions, turned, strict=True))


def gaps(learner):
    return {name: ref.numbers(s.weight - s.feedback) for name, s in with_feedback(learner).items()}


@pytest.mark.parametrize("name", ["cnn", "recurrent"])
@pytest.mark.parametrize("rule", [n for n, one in apical.rules().items() if isinstance(one.pathway, LayerWise)])
def test_all_directions_are_the_rule_itself(rule, name):
    """P with as many rows as there are outputs, which is attached by hand: P^T P = 1."""
    (net, shape), (other, _) = build(name), build(name)
    learner, theirs = attach(net, rule, shape), attach(other, rule, shape)
    for synapse in learner.synapses.values():
        groups = getattr(synapse, "groups", 1)
        outputs = synapse.weight.shape[synapse.output_dim] // (1 if synapse.output_dim else groups)
        give(synapse, outputs, None, aside(seed(5)))
    batches = stream(shape)
    moves = [torch.optim.SGD(one.parameters(), lr=0.05) for one in (net, other)]
    for _ in range(3):
        x, y = next(batches)
        for one, mine, optimizer in zip((net, other), (learner, theirs), moves, strict=True):
            step(one, (x, y), None)
            mine.adapt(x, y, lambda outputs, targets: 0.5 * (outputs - targets).square().sum(1))
            optimizer.step()
            optimizer.zero_grad()
    for key, tensor in other.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], tensor, rtol=1e-9, atol=1e-10)
