"""Few directions of the error: which they are, how they follow it, and where they are kept."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy
from comparison import equal
from cuda_graphs.emulated import Emulated
from learning import gradients
from networks import CLASSES, DOUBLES, convolutions, dynamo, flat_chain, seed
from synapses.common import native

RULE = partial(apical.rule, "kp", rank=2, every=2)


def attach(rule=None, make=convolutions, n=1, **options) -> apical.Learner:
    return apical.attach(make(), rule or RULE(), example_input=DOUBLES, generator=seed(n), **options)


def learn(learner, optimizer, steps=1, x=DOUBLES, y=CLASSES, call=None) -> None:
    for _ in range(steps):
        cross_entropy((call or learner.model)(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()


def sgd(learner, **options):
    return torch.optim.SGD(learner.model.parameters(), 0.05, **{"momentum": 0.9, **options})


def state(learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def one_layer(outputs=12, **options) -> apical.Synapse:
    return apical.attach(nn.Linear(5, outputs), apical.rule("fa", track=True, **options), generator=seed()).synapses[""]


def back(synapse, delta: Tensor) -> None:
    x = torch.ones(*delta.shape[:-1], 5, requires_grad=True)
    synapse(x).backward(delta)


def test_ranks_are_numbers_or_fractions_of_the_outputs():
    shapes = {name: s.projection is not None and s.projection.shape for name, s in attach().synapses.items()}
    # The first sends nothing back; the second and third have groups, or outputs that are their weights' second dimension.
    assert shapes == {"0": False, "3": False, "5": (2, 4), "8": (2, 3)}
    half = attach(apical.rule("fa", rank=0.5)).synapses
    assert [half[name].projection.shape for name in ("3", "5", "8")] == [(2, 2), (2, 4), (2, 3)]
    assert all(synapse.subspace is None for synapse in attach(apical.rule("fa", rank=4)).synapses.values())


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (nn.Linear(512, 600), 32),
        (nn.Linear(4096, 2048), 32),
        (nn.Linear(511, 2048), None),
        (nn.Conv2d(32, 128, 3), 32),
        (nn.Conv2d(64, 64, 3, groups=2), 32),  # 16 for each
        (nn.Conv2d(64, 48, 3, groups=4), None),
        (nn.Conv2d(64, 256, 1), None),
        (nn.Conv2d(16, 64, 3), None),
        (nn.Conv1d(64, 64, 9), 16),
        (nn.ConvTranspose2d(64, 128, 3), 32),
        (nn.ConvTranspose2d(64, 128, 2, stride=2), None),
    ],
    ids=str,
)
def test_auto_goes_by_shape(layer, rank):
    synapse = apical.attach(layer, apical.rule("fa", rank="auto", track=True)).synapses[""]
    assert (None if synapse.projection is None else len(synapse.projection)) == rank


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "rank must be a positive"),
        ({"rank": 2.5}, "rank must be a positive whole number"),
        ({"rank": "most"}, "rank must be a whole number, a number, 'auto' or None"),
        ({"rank": True}, "rank must be"),
        ({"subspace": "learned"}, "subspace must be 'tracked' or 'random'"),
        ({"rows": 0}, "rows must be a whole number of at least 1"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"memory": 1.0}, "memory must be below 1"),
        ({"memory": -0.1}, "memory must be a number of at least 0"),
    ],
)
def test_what_is_no_rank(options, says):
    with pytest.raises(ValueError, match=says):
        apical.rule("kp", **options)


def test_layers_that_cannot_be_projected_are_named():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.both = nn.Linear(4, 6), nn.Bilinear(6, 6, 5)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.both(h, h)

    model = Pair()
    with pytest.raises(
        ValueError, match=r"'both.products', a Contraction, can't be seen through rank=2 directions.*auto"
    ):
        apical.attach(model, RULE())
    assert type(model.first) is nn.Linear
    apical.attach(model, {"": RULE(), "both": "kp"})


def test_feedback_and_noise_are_those_of_the_rule_without():
    for rule in ("kp", "wm", "np"):
        one, other = attach(apical.rule(rule, rank=2)), attach(rule)
        for learner in (one, other):
            cross_entropy(learner.model(DOUBLES), CLASSES).mean().backward()
            learner.adapt(DOUBLES, CLASSES, cross_entropy)
        theirs = state(other)
        found = {name: tensor for name, tensor in state(one).items() if name in theirs}
        if rule == "np":  # Errors further down have come through P.
            found, theirs = ({"8.feedback": each["8.feedback"]} for each in (found, theirs))
        equal(found, theirs, rtol=0, atol=0)


def test_the_directions_are_the_leading_ones_of_the_errors():
    synapse = one_layer(rank=3, memory=0.5, every=1)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=seed(1)))[0]
    scales = torch.tensor([5.0, 4.0, 3.0] + [0.5] * 9)
    for n in range(20):
        back(synapse, torch.randn(200, 12, generator=seed(n)) * scales @ basis.T)
    P = synapse.projection
    torch.testing.assert_close(P @ P.T, torch.eye(3), atol=1e-5, rtol=0)
    assert float((P @ basis[:, :3]).svd().S.min()) > 0.99
    still = one_layer(rank=3, subspace="random")
    drawn = still.projection.clone()
    back(still, torch.randn(200, 12, generator=seed(9)))
    assert torch.equal(still.projection, drawn)
    assert not hasattr(still, "covariance")


def test_covariance_and_turns_are_as_the_formula_has_them():
    synapse = one_layer(rank=3, memory=0.8, every=3)
    C, P = torch.zeros(12, 12), synapse.projection.clone()
    for n in range(7):
        delta = torch.randn(4, 10, 12, generator=seed(n))
        back(synapse, delta)
        if n % 3 == 0:
            rows = delta.flatten(0, 1)
            C = 0.8 * C + 0.2 * rows.T @ rows / rows.square().sum()
            P = torch.linalg.qr((P @ C).T)[0].T
        torch.testing.assert_close(synapse.covariance[0], C)
        torch.testing.assert_close(synapse.projection.T @ synapse.projection, P.T @ P, atol=1e-4, rtol=1e-4)


def test_no_more_rows_are_looked_at_than_asked_for():
    for shape, layer in (
        ((40, 12), nn.Linear(5, 12)),
        ((9, 12, 6, 6), nn.Conv2d(5, 12, 1)),
        ((2, 12, 50), nn.Conv1d(5, 12, 1)),
    ):
        rule = apical.rule("fa", track=True, rank=3, rows=4, every=1)
        synapse = apical.attach(layer, rule, generator=seed()).synapses[""]
        x = torch.ones(*(5 if n == 12 else n for n in shape), requires_grad=True)
        for turn in range(2):
            synapse(x).backward(torch.randn(shape, generator=seed(turn)))
            rank = int(torch.linalg.matrix_rank(synapse.covariance[0], atol=1e-6))
            assert 4 * turn < rank <= 4 * (turn + 1)  # others than before


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_errors_that_are_zero_or_not_finite_turn_nothing(bad):
    synapse = one_layer(rank=3, every=1)
    drawn = synapse.projection.clone()
    back(synapse, torch.full((20, 12), bad))
    torch.testing.assert_close(synapse.projection.T @ synapse.projection, drawn.T @ drawn)
    back(synapse, torch.randn(20, 12, generator=seed(3)))
    C = synapse.covariance.clone()
    back(synapse, torch.full((20, 12), bad))
    assert torch.equal(synapse.covariance, C)
    assert bool(synapse.projection.isfinite().all())


def test_turns_are_made_in_full_precision_whatever_autocast_says():
    one, other = one_layer(rank=3, every=1), one_layer(rank=3, every=1)
    delta = torch.randn(20, 12, generator=seed(3))
    for synapse, casts in ((one, False), (other, True)):
        y = synapse(torch.ones(20, 5, requires_grad=True))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=casts):
            y.backward(delta)
    assert torch.equal(other.covariance, one.covariance)
    assert torch.equal(other.projection, one.projection)


def test_audits_and_alignment_turn_nothing_and_see_the_projection():
    for name, transported in (("kp", {"nothing"}), ("bp", {"nothing", "weights"})):
        learner = attach(apical.rule(name, rank=2, every=1))
        learn(learner, sgd(learner), 2)
        before, passes = state(learner), learner.followed
        report = apical.audit(learner, DOUBLES, CLASSES, cross_entropy)
        assert {report.transported[synapse] for synapse in learner.synapses} == transported
        found = apical.alignment(learner, DOUBLES, CLASSES, cross_entropy)
        assert learner.followed == passes
        equal(state(learner), before, rtol=0, atol=0)
        assert found["8"].delta_angle == 0
        if name == "bp":
            assert found["8"].matrix_angle < 1e-3
            assert (
                found["8"].layer_angle < 1e-3
            )  # Two directions hold the errors of three classes, which add up to zero.
            assert found["5"].layer_angle > 1  # W seen through P, beside W
            assert found["3"].delta_angle > 1


def test_a_checkpoint_goes_on_as_if_nothing_had_been():
    one = attach(RULE(every=3))
    moves = sgd(one)
    learn(one, moves, 4)
    other = attach(RULE(every=3), n=7)
    its = sgd(other)
    other.model.load_state_dict(one.model.state_dict())
    other.load_state_dict(pickle.loads(pickle.dumps(one.state_dict())))
    its.load_state_dict(copy.deepcopy(moves.state_dict()))
    copied = apical.learner_of(pickle.loads(pickle.dumps(one.model)))
    third = sgd(copied)
    third.load_state_dict(copy.deepcopy(moves.state_dict()))
    for learner, optimizer in ((one, moves), (other, its), (copied, third)):
        learn(learner, optimizer, 4)
    equal(state(other), state(one), rtol=0, atol=0)
    equal(state(copied), state(one), rtol=0, atol=0)
    one.model[8] = nn.Linear(36, 3).double()
    passes = one.followed["5"]
    one.refresh()
    assert one.followed == {"5": passes, "8": 0}
    assert torch.equal(one.synapses["5"].projection, other.synapses["5"].projection)
    plain = one.detach()
    assert not [key for key in plain.state_dict() if "projection" in key or "covariance" in key]
    assert all("subspace" not in vars(module) for module in plain.modules())


@dynamo
def test_compiled_models_learn_and_turn_as_eager_ones():
    torch.compiler.reset()
    eager, model = attach(make=flat_chain), attach(make=flat_chain)
    call = torch.compile(model.model, backend="aot_eager", fullgraph=True)
    learn(eager, sgd(eager), 5), learn(model, sgd(model), 5, call=call)
    equal(state(model), state(eager), rtol=1e-9, atol=1e-10)
    assert model.followed == eager.followed == {"4": 5, "6": 5}
    torch.compiler.reset()


@pytest.mark.parametrize("every", [1, 3])
def test_captured_steps_turn_when_they_would(every):
    from apical.cuda_graphs.step import Captured

    def loop():
        learner = attach(RULE(every=every))
        optimizer = sgd(learner)

        def step(x, y):
            loss = cross_entropy(learner.model(x), y).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        return learner, step

    (one, step), (other, its) = loop(), loop()
    quick = Captured(step, (DOUBLES, CLASSES), Emulated(), tells=False)
    for n in range(14):
        x = torch.randn(8, 2, 6, 6, generator=seed(n), dtype=torch.float64)
        assert torch.equal(quick(x, CLASSES), its(x, CLASSES))
    equal(state(one), state(other), rtol=0, atol=0)
    assert one.followed == other.followed
    if every == 1:
        assert "subspaces turn in every step" in quick.why
    else:
        assert (quick.why, quick.replays) == (None, 7)


@pytest.mark.parametrize("mode", ["off", "on"])
def test_local_sgd_moves_as_sgd_and_the_node_in_cpp_leaves_it_to_python(mode):
    with native(mode):
        one, other = attach(), attach()
        learn(one, apical.LocalSGD(one, lr=0.05, momentum=0.9), 4), learn(other, sgd(other), 4)
        equal(state(one), state(other), rtol=1e-9, atol=1e-11)


def test_copies_side_by_side_have_directions_of_their_own():
    singles = []
    for n in range(3):
        torch.manual_seed(n)
        layers = [
            nn.Conv2d(2, 6, 3),
            nn.Tanh(),
            nn.Conv2d(6, 8, 3, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(32, 5),
        ]
        singles.append(nn.Sequential(*layers, nn.Tanh(), nn.Linear(5, 3)).double())
        apical.attach(singles[-1], RULE(), example_input=DOUBLES, generator=seed(n))
    together = apical.replicate(singles, example_input=DOUBLES)
    learner = apical.learner_of(together)
    for optimizer in [torch.optim.SGD(together.parameters(), 0.1)]:
        for _ in range(5):
            outputs = together(DOUBLES.expand(3, *DOUBLES.shape)).flatten(0, 1)
            (cross_entropy(outputs, CLASSES.repeat(3)).sum() / len(CLASSES)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for single in singles:
        own = apical.learner_of(single)
        learn(own, torch.optim.SGD(single.parameters(), 0.1), 5)
    for single, copied in zip(singles, together.split(), strict=True):
        assert apical.learner_of(copied).followed == learner.followed
        equal(copied.state_dict(), single.state_dict(), rtol=1e-8, atol=1e-10)


@dynamo
def test_exports_and_transforms_carry_the_projection():
    learner = attach(RULE(subspace="random"))
    model, target = learner.model.eval(), CLASSES
    expected = {name: g for name, g in gradients(model, DOUBLES, target).items() if g.any()}
    got = grad(lambda p: F.cross_entropy(functional_call(model, p, (DOUBLES,)), target))(dict(model.named_parameters()))
    equal({name: got[name] for name in expected}, expected, rtol=1e-9, atol=1e-12)
    model.train()
    expected = {name: g for name, g in gradients(model, DOUBLES, target).items() if g.any()}
    exported = torch.export.export(model, (DOUBLES,), strict=False).module()
    got = gradients(exported, DOUBLES, target)
    equal({name: got[name] for name in expected}, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("inside", [True, False])
def test_half_precision_and_memory_formats(inside):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 3))

    rule = apical.rule("kp", rank=4, every=1)
    found = []
    for half in (False, True):
        model = make().to(memory_format=torch.channels_last if half else torch.contiguous_format)
        synapse = apical.attach(model, rule, example_input=DOUBLES.float(), generator=seed()).synapses["2"]
        x = DOUBLES.float().contiguous(memory_format=torch.channels_last if half else torch.contiguous_format)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x), CLASSES)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        assert synapse.projection.dtype == synapse.covariance.dtype == torch.float32
        found.append((model[0].weight.grad.flatten(), synapse.covariance.flatten()))
    for one, other in zip(*found, strict=True):
        assert float(F.cosine_similarity(one, other, dim=0)) > 0.99


def test_masks_of_connections_leave_the_directions_alone():
    square = partial(nn.Sequential, nn.Flatten(), nn.Linear(72, 6), nn.Tanh())
    learner = attach(make=lambda: square(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double(), connectivity=0.5)
    learn(learner, sgd(learner), 3)
    synapse = learner.synapses["3"]
    assert synapse.covariance.shape == (1, 6, 6)
    assert bool((synapse.covariance != 0).all())
    assert not synapse.feedback[synapse.feedback_mask == 0].any()
