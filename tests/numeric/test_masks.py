"""Thinned networks against the equations written out with explicit masks: W * M_W forward, B * M_B back (reference 1.13)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import squared_error

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def seeded(n: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).double()


X = torch.randn(10, 7, generator=seeded(2), dtype=torch.float64)
Y = torch.eye(3, dtype=torch.float64)[torch.randint(3, (10,), generator=seeded(3))]


def targets_loss(outputs, y=Y):
    return 0.5 * (outputs - y).square().sum(1)


def masks(learner: apical.Learner) -> list[tuple[np.ndarray, np.ndarray | None]]:
    return [
        (s.weight_mask.numpy().copy(), None if s._buffers.get("feedback_mask") is None else s.feedback_mask.numpy().copy())
        for s in learner.synapses.values()
    ]  # fmt: skip


@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "kp", "dfa", "kp-direct", "shallow"])
def test_a_thinned_network_learns_as_numpy_says(rule):
    """Momentum and decay over 20 steps; W, b and the feedback, every element."""
    lr, momentum, decay = 0.05, 0.9, 0.01
    net = mlp()
    W = [layer.weight.detach().numpy().copy() for layer in net[::2]]
    b = [layer.bias.detach().numpy().copy() for layer in net[::2]]
    learner = apical.attach(
        net, rule, example_input=X, generator=seeded(), connectivity=apical.Connectivity(weight=0.6, feedback=0.4)
    )
    drawn = masks(learner)
    W = [w * m for w, (m, _) in zip(W, drawn, strict=True)]
    B = [None if s.feedback is None else s.feedback.detach().numpy().copy() for s in learner.synapses.values()]
    learns = rule in ("kp", "kp-direct")
    velocity: dict[tuple[str, int], np.ndarray] = {}

    def move(kind: str, index: int, value: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        step = gradient + decay * value
        old = velocity.get((kind, index))
        velocity[kind, index] = step if old is None else momentum * old + step
        return value - lr * velocity[kind, index]

    optimizer = torch.optim.SGD(net.parameters(), lr, momentum=momentum, weight_decay=decay)
    x, y = X.numpy(), Y.numpy()
    for _ in range(20):
        targets_loss(net(X)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        hs = [x]
        for index in range(3):
            a = hs[-1] @ W[index].T + b[index]
            hs.append(np.tanh(a) if index < 2 else a)
        e = delta = (hs[-1] - y) / len(x)
        changes = []
        for index in (2, 1, 0):
            product = delta.T @ hs[index]
            (forth, back), feedback = drawn[index], B[index]
            own = None
            if learns and feedback is not None:
                own = (e.T @ hs[index] if rule == "kp-direct" else product) * back
            changes.append((index, product * forth, delta.sum(0), own))
            if index == 0:
                break
            if rule == "bp":
                signal = delta @ W[index]
            elif rule == "usf":
                fan = sum(W[index].shape)
                signal = delta @ (np.sign(W[index]) * back * np.sqrt(2 / fan))
            elif rule == "shallow":
                signal = 0 * hs[index]
            else:
                signal = (e if "d" in rule else delta) @ feedback
            delta = signal * (1 - hs[index] ** 2)
        for index, dw, db, own in changes:
            if rule == "shallow" and index < 2:
                continue  # No gradient at all, so PyTorch decays nothing.
            W[index], b[index] = move("W", index, W[index], dw), move("b", index, b[index], db)
            if own is not None:
                B[index] = move("B", index, B[index], own)
    for index, synapse in enumerate(learner.synapses.values()):
        np.testing.assert_allclose(synapse.weight.detach().numpy(), W[index], **EXACT)
        np.testing.assert_allclose(synapse.bias.detach().numpy(), b[index], **EXACT)
        if B[index] is not None and rule not in ("bp", "usf"):
            np.testing.assert_allclose(synapse.feedback.detach().numpy(), B[index], **EXACT)


KINDS = {
    "linear": (nn.Linear(6, 8), (5, 6), F.linear, {}),
    "linear with positions": (nn.Linear(6, 8), (5, 4, 6), F.linear, {}),
    "conv1d": (nn.Conv1d(3, 4, 3, dilation=2), (2, 3, 11), F.conv1d, {"dilation": 2}),
    "grouped strided conv2d": (
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7), F.conv2d, {"stride": 2, "padding": 1, "groups": 2},
    ),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4), F.conv3d, {}),
    "grouped transposed conv2d": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 4, 4), F.conv_transpose2d, {"stride": 2, "groups": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", ["bp", "fa", "urfb", "frsf"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kinds_gradients_are_those_of_explicit_masks(kind, rule):
    """Signal: the operation's derivative for x at B * M_B. Update: its derivative for W, times M_W; for B, times M_B."""
    layer, shape, operation, options = KINDS[kind]
    torch.manual_seed(5)
    layer = type(layer)(**_arguments(layer)).double()
    W, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    learner = apical.attach(layer, rule, generator=seeded(6), connectivity=0.5)
    synapse = learner.synapses[""]
    x = torch.randn(shape, dtype=torch.float64, generator=seeded(7)).requires_grad_()
    thin = W * synapse.weight_mask
    carrier = {"bp": thin, "frsf": None}.get(rule, synapse.feedback.detach().clone())
    if rule == "frsf":
        carrier = torch.sign(thin) * synapse.magnitudes * synapse.feedback_mask
    y = layer(x)
    delta = torch.randn(y.shape, dtype=torch.float64, generator=seeded(8))
    y.backward(delta)

    def through(weight):
        a, w = x.detach().requires_grad_(), weight.clone().requires_grad_()
        return operation(a, w, bias, **options), a, w

    out, a, w = through(thin)
    torch.testing.assert_close(y, out, **EXACT)
    (product,) = torch.autograd.grad(out, w, delta)
    out, a, _ = through(carrier)
    (signal,) = torch.autograd.grad(out, a, delta)
    torch.testing.assert_close(x.grad, signal, **EXACT)
    torch.testing.assert_close(synapse.weight.grad, product * synapse.weight_mask, **EXACT)
    if rule == "urfb":
        torch.testing.assert_close(synapse._parameters["feedback"].grad, product * synapse.feedback_mask, **EXACT)
    if rule != "bp":
        assert torch.equal(carrier * synapse.feedback_mask, carrier)


def _arguments(layer: nn.Module) -> dict:
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(layer, name) for name in names}


@pytest.mark.parametrize("rule", ["kp", "kp-direct"])
def test_kolen_pollack_brings_weights_and_feedback_together_only_where_both_exist(rule):
    """W - B has the factor 1 - lr decay a step on reciprocal pairs; elsewhere one of the two is absent."""
    lr, decay, steps = 0.1, 0.05, 30
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 20), nn.Tanh(), nn.Linear(20, 15), nn.Tanh(), nn.Linear(15, 3)).double()
    learner = apical.attach(net, rule, example_input=X, generator=seeded(), connectivity=0.5)
    # Direct feedback to the last layer's input stands for that layer's weights.
    synapse = learner.synapses["4" if rule == "kp-direct" else "2"]
    before = (synapse.weight - synapse.feedback).detach().clone()
    start = synapse.weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr, weight_decay=decay)
    for _ in range(steps):
        targets_loss(net(X)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    W, B = synapse.weight.detach(), synapse.feedback.detach()
    forth, back = synapse.weight_mask.bool(), synapse.feedback_mask.bool()
    both = forth & back
    assert both.any()
    assert (forth & ~back).any()
    assert (~forth & back).any()
    torch.testing.assert_close((W - B)[both], (before * (1 - lr * decay) ** steps)[both], **EXACT)
    assert not B[~back].any()
    assert not W[~forth].any()
    # A lone weight moves by its product and does not follow the law.
    lone = forth & ~back
    assert ((W - B)[lone] - (before * (1 - lr * decay) ** steps)[lone]).abs().max() > 1e-3
    assert (W[forth] != start[forth]).all()


@pytest.mark.parametrize("rule", ["wm", "np", "np-direct", "sg", "sg-direct"])
def test_feedback_that_learns_in_a_phase_learns_what_whole_feedback_would_where_it_exists(rule):
    """One call on a network with the same thinned weights and the same feedback, stored whole; then times the mask."""
    learners = []
    for back in (0.5, 1.0):
        net = mlp()
        learners.append(
            apical.attach(
                net,
                rule,
                example_input=X,
                generator=seeded(),
                connectivity=apical.Connectivity(weight=0.5, feedback=back),
            )
        )
    thin, whole = learners
    for name, synapse in whole.synapses.items():
        other = thin.synapses[name]
        assert torch.equal(synapse.weight, other.weight)
        if synapse.feedback is not None:
            synapse.feedback = other.feedback.clone()
    whole.generator.set_state(thin.generator.get_state())
    before = {name: s.feedback.clone() for name, s in thin.synapses.items() if s.feedback is not None}
    for learner in learners:
        squared_error(learner.model(X), Y.argmax(1)).mean().backward()
        learner.adapt(X, Y.argmax(1), squared_error)
    assert before
    for name, old in before.items():
        mask = thin.synapses[name].feedback_mask
        torch.testing.assert_close(thin.synapses[name].feedback, whole.synapses[name].feedback * mask, **EXACT)
        assert ((thin.synapses[name].feedback != old) == mask.bool()).all()


def test_backpropagation_on_a_thinned_network_is_pytorchs_own():
    thinned, plain = mlp(), mlp()
    learner = apical.attach(thinned, "bp", generator=seeded(), connectivity=0.5)
    kept = {name: s.weight_mask for name, s in learner.synapses.items()}
    moves, own = (torch.optim.Adam(net.parameters(), 0.01, weight_decay=0.01) for net in (thinned, plain))
    with torch.no_grad():
        for name, mask in kept.items():
            plain.get_submodule(name).weight.mul_(mask)
    for _ in range(20):
        targets_loss(thinned(X)).mean().backward()
        targets_loss(_masked(plain, kept, X)).mean().backward()
        for optimizer in (moves, own):
            optimizer.step()
            optimizer.zero_grad()
    for mine, its in zip(thinned.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, its, **EXACT)


def _masked(net: nn.Sequential, kept: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for name, layer in net.named_children():
        x = F.linear(x, layer.weight * kept[name], layer.bias) if name in kept else layer(x)
    return x
