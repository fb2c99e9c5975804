"""Direct feedback that is made of less than D: equal to the equations written out in NumPy, whatever it is made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import apical
from learning import attach
from networks import IMAGES as SMALL
from networks import Y, exactly, seed

IMAGES = torch.randn(8, 2, 7, 6, generator=seed(3), dtype=torch.float64)
OPTIONS = [
    {},
    {"positions": "same"},
    {"positions": (3, 2)},
    {"positions": (3, 4)},
    {"positions": (7, 6)},
    {"rank": 2},
    {"positions": "same", "rank": 2},
    {"positions": (2, 2), "rank": 2},
    {"positions": "same", "rank": 64},
    {"shared": True},
    {"positions": "same", "shared": True},
    {"shared": True, "rank": 2},
    {"seeded": True},
    {"positions": (2, 3), "seeded": True},
    {"positions": "same", "seeded": True, "rank": 2},
]
LEARNED = [one for one in OPTIONS if "shared" not in one and "seeded" not in one]


def written(options: dict) -> str:
    return ",".join(f"{key}={value}" for key, value in options.items()) or "dense"


def convolutions() -> nn.Sequential:
    """Maps of [7, 6] and of [4, 3], and vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(5, 6, 2),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    ).double()


def heard(model: nn.Module, learner: apical.Learner, x: Tensor, y: Tensor = Y) -> dict[str, tuple[Tensor, Tensor]]:
    """Activity and signal at the input of every synapse, in one step; the output's error is under ""."""
    found, handles = {}, []

    def look(name: str):
        def hook(module, args):
            (x,) = args
            if x.requires_grad:
                x.register_hook(lambda signal: found.update({name: (x.detach(), signal.clone())}))

        return hook

    handles = [s.register_forward_pre_hook(look(name), prepend=True) for name, s in learner.synapses.items()]
    model.zero_grad()
    output = model(x)
    output.retain_grad()
    nn.functional.cross_entropy(output.movedim(-1, 1), y).backward()
    for handle in handles:
        handle.remove()
    found[""] = (output.detach(), output.grad)
    return found


def spread(core: np.ndarray, features: tuple[int, ...]) -> np.ndarray:
    """Rows laid over the positions of a map, value by value."""
    full = np.zeros((len(core), *features))
    if core.shape[1:] == features:
        return core
    h, w = (1, 1) if core.ndim == 2 else core.shape[2:]
    core = core.reshape(*core.shape[:2], h, w)
    H, W = features[1:]
    for i in range(H):
        for j in range(W):
            full[:, :, i, j] = core[:, :, i * h // H, j * w // W] * (h * w) / (H * W)
    return full


def in_full(synapse, features: tuple[int, ...]) -> np.ndarray:
    D = spread(synapse.feedback.detach().numpy(), features)
    P = synapse._buffers.get("feedback_projection")
    return D if P is None else np.einsum("or,r...->o...", P.numpy(), D)


@pytest.mark.parametrize("options", OPTIONS, ids=written)
def test_signals_are_the_error_times_the_feedback_that_is_made(options):
    model = convolutions()
    learner = attach(model, apical.rule("dfa", **options), IMAGES)
    found = heard(model, learner, IMAGES)
    e = found.pop("")[1].numpy()
    assert found.keys() == {"2", "4", "8", "10"}
    for name, (x, signal) in found.items():
        D = in_full(learner.synapses[name], tuple(x.shape[1:]))
        expected = np.einsum("no,o...->n...", e, D)
        assert np.abs(expected).max() > 1e-6
        np.testing.assert_allclose(signal.numpy(), expected, rtol=1e-10, atol=1e-14)


def test_what_is_kept_is_as_small_as_the_options_say():
    def kept(**options) -> dict[str, list[int]]:
        learner = attach(convolutions(), apical.rule("dfa", **options), IMAGES)
        return {n: list(t.shape) for n, t in learner.synapses["4"].named_buffers() if n.startswith("feedback")}

    assert kept() == {"feedback": [3, 5, 4, 3]}
    assert kept(positions="same") == {"feedback": [3, 5]}
    assert kept(positions=(2, 9)) == {"feedback": [3, 5, 2, 3]}
    assert kept(rank=2) == {"feedback": [2, 5, 4, 3], "feedback_projection": [3, 2]}
    assert kept(positions="same", rank=2) == {"feedback": [2, 5], "feedback_projection": [3, 2]}
    assert kept(rank=3) == kept()
    assert kept(shared=True) == {"feedback": [3, 4 * 7 * 6]}
    assert kept(seeded=True) == {"feedback_seed": [1]}


def test_one_projection_and_one_matrix_are_kept_for_all_places():
    model = convolutions()
    learner = attach(model, apical.rule("dfa", shared=True, rank=2), IMAGES)
    for name in ("feedback", "feedback_projection"):
        assert len({s._buffers[name].data_ptr() for s in learner.synapses.values() if name in s._buffers}) == 1
    P = learner.synapses["4"]._buffers["feedback_projection"]
    torch.testing.assert_close(P.t() @ P, 1.5 * torch.eye(2, dtype=torch.float64))
    M, D = learner.synapses["4"]._buffers["feedback"], learner.synapses["4"].feedback
    torch.testing.assert_close(D.flatten(1), M[:, :60] * 60**-0.5)
    before = heard(model, learner, IMAGES)
    model.float().double()  # A cast makes a tensor of each; the next pass makes them one again.
    after = heard(model, learner, IMAGES)
    for name in ("feedback", "feedback_projection"):
        assert len({s._buffers[name].data_ptr() for s in learner.synapses.values() if name in s._buffers}) == 1
    for name, (_, signal) in after.items():
        torch.testing.assert_close(signal, before[name][1], rtol=1e-4, atol=1e-6)


def hashed(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@pytest.mark.parametrize(("init", "shape"), [("weights", (10, 3000)), ("lansdell2020", (200, 11000))])
def test_seeded_feedback_is_that_of_its_seed_to_the_bit(init, shape, monkeypatch):
    """As it is kept nowhere, so it is as if it were: the same numbers, the same signals, block by block."""
    outputs, features = shape
    net = nn.Sequential(nn.Linear(4, features), nn.Tanh(), nn.Linear(features, outputs))
    learner = attach(net, apical.rule("dfa", seeded=True, init=init))
    synapse = learner.synapses["2"]
    D, number = synapse.feedback, int(synapse._buffers["feedback_seed"])
    low, high = np.uint32(number & 0x7FFFFFFF), np.uint32((number >> 31) & 0x7FFFFFFF)
    golden = np.uint32(0x9E3779B1)
    columns = hashed(np.arange(features, dtype=np.uint32) * golden + low)
    rows = hashed(np.arange(outputs, dtype=np.uint32) * golden + high)
    bits = (hashed(columns[None] ^ rows[:, None]) & np.uint32(0xFFFFFF)).astype(np.int64) * 2 + 1 - 2**24
    if init == "weights":
        expected = bits.astype(np.float32) * np.float32(features**-0.5 * 2.0**-24)
        assert np.array_equal(D.numpy(), expected)
    sd = features**-0.5 / 3**0.5 if init == "weights" else (2 / features) ** 0.5
    assert float(D.std() / sd) == pytest.approx(1, abs=0.02)
    assert abs(float(D.mean() / sd)) < 0.02
    assert float(torch.corrcoef(D[:8]).fill_diagonal_(0).abs().max()) < 0.06
    kept = nn.Sequential(nn.Linear(4, features), nn.Tanh(), nn.Linear(features, outputs))
    kept.load_state_dict(net.state_dict(), strict=False)
    attach(kept, "dfa").synapses["2"].feedback = D
    x = torch.randn(8, 4, generator=seed(2))
    target = torch.arange(8)
    for one in (net, kept):
        nn.functional.cross_entropy(one(x), target).backward()
    assert torch.equal(net[0].weight.grad, kept[0].weight.grad)


def gathered(G: np.ndarray, like: tuple[int, ...]) -> np.ndarray:
    """The adjoint of `spread`, from its own definition: the derivative by every value of the core."""
    core = np.zeros((len(G), *like))
    for place in np.ndindex(*like):
        one = np.zeros((1, *like))
        one[(0, *place)] = 1
        core[(slice(None), *place)] = (G * spread(one, G.shape[1:])).reshape(len(G), -1).sum(1)
    return core


@pytest.mark.parametrize("options", LEARNED, ids=written)
def test_kp_direct_moves_what_is_kept_by_the_product_of_error_and_activity(options):
    model = convolutions()
    learner = attach(model, apical.rule("kp-direct", **options), IMAGES)
    found = heard(model, learner, IMAGES)
    e = found.pop("")[1].numpy()
    for name, (x, _) in found.items():
        synapse = learner.synapses[name]
        P = synapse._buffers.get("feedback_projection")
        rows = e if P is None else e @ P.numpy()
        expected = gathered(np.einsum("nk,n...->k...", rows, x.numpy()), tuple(synapse.feedback.shape[1:]))
        np.testing.assert_allclose(synapse.feedback.grad.numpy(), expected, rtol=1e-10, atol=1e-14)
        assert np.abs(expected).max() > 1e-6
    assert all(s._buffers.get("feedback_projection") is None for s in learner.synapses.values()) == (
        "rank" not in options or options["rank"] > 3
    )


def test_behind_a_global_average_shared_feedback_follows_the_weights_by_the_law_of_kolen_and_pollack():
    """There the true gradient is the same at all positions, and what D gets is what W gets: W - D shrinks as decay says."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    attach(net, apical.rule("kp-direct", positions="same"), IMAGES, at=["0"])
    apart = net[3].weight.detach() - net[0].feedback.detach()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(IMAGES), Y).backward()
        optimizer.step()
    torch.testing.assert_close(net[3].weight - net[0].feedback, 0.98**30 * apart, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rule", "solver"), [("sg-direct", "sgd"), ("sg-direct", "ridge"), ("np-direct", "sgd")])
@pytest.mark.parametrize("options", [one for one in LEARNED if one], ids=written)
def test_regression_fits_what_is_kept_to_the_true_gradient(options, rule, solver, monkeypatch):
    monkeypatch.setattr("apical.phases.phase.estimates", exactly)
    model = convolutions()
    learner = attach(model, apical.rule(rule, solver=solver, rate=0.05, **options), IMAGES)
    criterion = nn.CrossEntropyLoss(reduction="none")
    before = {n: s.feedback.clone() for n, s in learner.synapses.items() if s.feedback is not None}
    found = heard(model, learner, IMAGES)
    e = 8 * found.pop("")[1].numpy()
    learner.adapt(IMAGES, Y, criterion)
    true = convolutions()
    true.load_state_dict(model.state_dict(), strict=False)
    gradient = _true_gradients(true, found)
    for name, (x, _) in found.items():
        synapse, features = learner.synapses[name], tuple(x.shape[1:])
        P = synapse._buffers.get("feedback_projection")
        rows = e if P is None else e @ P.numpy()
        core, shape = before[name].numpy(), before[name].shape
        # What the core has to be, for a signal with the least squares of its difference: values of it are heard apart.
        places = np.eye(core[0].size).reshape(-1, 1, *shape[1:])
        heard_by = np.stack([spread(place, features).ravel() for place in places])
        wanted = gradient[name].numpy().reshape(len(e), -1) @ heard_by.T / (heard_by**2).sum(1)
        core = core.reshape(len(core), -1)
        if solver == "ridge":
            expected = np.linalg.solve(0.1 * np.eye(shape[0]) + rows.T @ rows, rows.T @ wanted)
        else:
            expected = core - 0.05 / 8 * rows.T @ (rows @ core - wanted)
        expected = expected.reshape(shape)
        np.testing.assert_allclose(synapse.feedback.numpy(), expected, rtol=1e-8, atol=1e-12)


def _true_gradients(model: nn.Sequential, places) -> dict[str, Tensor]:
    x, leaves = IMAGES, {}
    for name, module in model.named_children():
        if name in places:
            leaves[name] = x
        x = module(x)
    loss = nn.functional.cross_entropy(x, Y, reduction="sum")
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("options", [{"positions": "same", "rank": 2}, {"positions": (2, 2)}, {"rank": 2}], ids=written)
def test_direct_mirrors_come_near_to_the_gradient(options):
    """Of a linear network, D in full is the product of its weights, seen through P."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).double()
    x = SMALL.double()
    chosen = apical.Rule(apical.Direct(**options), apical.Mirror(batch=256, rate=0.1, decay=1.0))
    learner = attach(net, chosen, x)
    plain = apical.learner_of(copy.deepcopy(net)).detach()
    for _ in range(60):
        learner.adapt(x, Y, nn.CrossEntropyLoss(reduction="none"))
    (J,) = torch.autograd.functional.jacobian(
        lambda h: plain[1:](h).sum(0), (torch.zeros(1, 3, 6, 6, dtype=torch.float64),)
    )
    J = J[:, 0]
    synapse = learner.synapses["1"]
    D = torch.from_numpy(in_full(synapse, (3, 6, 6)))
    D_of = torch.from_numpy(spread(gathered(J.numpy(), tuple(synapse.feedback.shape[1:])), (3, 6, 6)))
    P = synapse._buffers.get("feedback_projection")
    if P is not None:
        D_of = torch.einsum("op,p...->o...", P @ torch.linalg.pinv(P), D_of)
    cosine = nn.functional.cosine_similarity(D.flatten(), D_of.flatten(), 0)
    assert cosine > 0.95, cosine
