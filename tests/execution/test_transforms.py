"""PyTorch's function transforms and forward-mode differentiation: right, or refused in words of our own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.nn import functional as F

import apical
from learning import RULES, attach, spread
from networks import IMAGES, X, Y, plain_chain

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, of tangents.

REFUSED = ("ifa", "reinforce")
SERVED = tuple(rule for rule in RULES if rule not in REFUSED)


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, groups=2, padding=1, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def loss(model, parameters, x, y):
    return F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])


def per_sample(model, x, y, **options):
    return vmap(grad(lambda *given: loss(model, *given)), (None, 0, 0), **options)(dict(model.named_parameters()), x, y)


def one_by_one(model, x, y):
    found = []
    for i in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        found.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


@pytest.mark.parametrize(
    ("rule", "make", "x", "connectivity"),
    spread([rule for rule in SERVED if rule != "brsf"], [(plain_chain, X), (images, IMAGES)], [None, 0.6]),
)
def test_gradients_of_every_sample_are_those_of_passes_one_by_one(rule, make, x, connectivity):
    model = make()
    apical.attach(model, rule, example_input=x, connectivity=connectivity)
    weights = [p.clone() for p in model.parameters()]
    torch.testing.assert_close(per_sample(model, x, Y), one_by_one(model, x, Y))
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("rule", [rule for rule in SERVED if rule != "brsf"])
def test_a_batch_mapped_over_is_learned_from_as_a_batch(rule):
    model = plain_chain()
    attach(model, rule)
    found = []
    for call in (model, lambda x: vmap(model)(x[:, None])[:, 0]):
        model.zero_grad()
        F.cross_entropy(call(X), Y).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("rule", SERVED)
@pytest.mark.parametrize(("make", "x"), [(plain_chain, X), (images, IMAGES)])
def test_tangents_are_those_of_the_plain_model(rule, make, x):
    model, plain = make(), make()
    attach(model, rule, x)
    with forward_ad.dual_level():
        mine, its = (forward_ad.unpack_dual(m(forward_ad.make_dual(x, x.cos()))) for m in (model, plain))
        torch.testing.assert_close(mine.tangent, its.tangent)
        torch.testing.assert_close(mine.primal, its.primal)
    torch.testing.assert_close(jvp(model, (x,), (x.cos(),)), jvp(plain, (x,), (x.cos(),)))


@pytest.mark.parametrize("rule", SERVED)
def test_tangents_of_weights_and_a_backward_pass_beside_them(rule):
    model, plain = plain_chain(), plain_chain()
    attach(model, rule)
    own = {n: p.detach() for n, p in model.named_parameters() if "feedback" not in n}
    found = [
        jvp(lambda p, m=m: functional_call(m, p, (X,)), (own,), ({n: p.sin() for n, p in own.items()},))
        for m in (model, plain)
    ]
    torch.testing.assert_close(*found)
    with forward_ad.dual_level():
        output = forward_ad.unpack_dual(model(forward_ad.make_dual(X, X))).primal
        with pytest.raises(RuntimeError, match="a second derivative asks"):
            F.cross_entropy(output, Y).backward(retain_graph=True)
    gradients = []
    for losses in (F.cross_entropy(output, Y), F.cross_entropy(model(X), Y)):
        model.zero_grad()
        if losses.requires_grad and rule != "brsf":
            losses.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "kp", "usf", "shallow"])
def test_second_derivatives_are_refused(rule):
    model = plain_chain()
    attach(model, rule)
    given = {n: p.detach() for n, p in model.named_parameters()}
    whole = lambda p: F.cross_entropy(functional_call(model, p, (X,)), Y)  # noqa: E731
    for second in (
        lambda: hessian(whole)(given),
        lambda: jvp(grad(whole), (given,), (given,)),
        lambda: grad(lambda p: grad(whole)(p)["4.weight"].sum())(given),
        lambda: grad(lambda p: jvp(lambda x: functional_call(model, p, (x,)), (X,), (X,))[1].sum())(given),
    ):
        with pytest.raises(RuntimeError, match="a second derivative asks for the gradient of an update"):
            second()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(X, X))).tangent
        with pytest.raises(RuntimeError, match="a second derivative asks for the gradient of an update"):
            tangent.sum().backward()


@pytest.mark.parametrize(
    ("rule", "why"), [("ifa", "graph of the whole model"), ("reinforce", r"filled in by learner\.adapt")]
)
def test_rules_that_no_transform_can_serve_say_so(rule, why):
    model, plain = plain_chain(), plain_chain()
    attach(model, rule)
    with pytest.raises(RuntimeError, match=why):
        per_sample(model, X, Y)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=why):
        model(forward_ad.make_dual(X, X))
    with torch.no_grad():
        torch.testing.assert_close(jvp(model, (X,), (X,)), jvp(plain, (X,), (X,)))
        torch.testing.assert_close(vmap(model)(X[:, None])[:, 0], plain(X))


def test_blocks_at_whose_outputs_the_signal_enters():
    blocks = [nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 6), nn.Tanh())]
    model = nn.Sequential(*blocks, nn.Linear(6, 3))
    apical.attach(model, "dfa", example_input=X, at=["0", "1"])
    torch.testing.assert_close(per_sample(model, X, Y), one_by_one(model, X, Y))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"a tangent does not pass '0'.*at="):
        model(forward_ad.make_dual(X, X))


def test_magnitudes_of_a_batch_are_drawn_once_for_all_samples():
    model = plain_chain()
    attach(model, "brsf")
    found = per_sample(model, X, Y, randomness="same")
    state = model[2].magnitudes.clone()
    assert found["0.weight"].shape == (len(X), 6, 4)
    with pytest.raises(RuntimeError, match="randomness"):
        per_sample(model, X, Y)
    F.cross_entropy(model(X), Y).backward()
    assert not torch.equal(model[2].magnitudes, state)


def test_a_transform_moves_no_weights_and_decides_nothing():
    model = plain_chain()
    learner = apical.attach(model, "kp")
    apical.LocalSGD(learner, lr=0.1)
    before = {n: p.clone() for n, p in model.named_parameters()}
    found = per_sample(model, X, Y)
    assert found.keys() == before.keys()
    assert model[0].feedback is not None
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["np", "sg", "wm"])
def test_a_phase_after_a_transform_learns_from_a_pass_of_its_own(rule):
    feedback = []
    for transformed in (False, True):
        model = plain_chain()
        learner = attach(model, rule)
        F.cross_entropy(model(X), Y).backward()
        if transformed:
            per_sample(model, X, Y)
        learner.adapt(X, Y, apical.losses.cross_entropy)
        feedback.append(model[2].feedback)
    torch.testing.assert_close(*feedback)


def test_ensembles_of_weights():
    model = nn.Sequential(nn.Linear(96, 96), nn.Tanh(), nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 10))
    x, y = torch.randn(64, 96), torch.randint(10, (64,))
    apical.attach(model, "fa", example_input=x)
    whole = lambda p: F.cross_entropy(functional_call(model, p, (x,)), y)  # noqa: E731
    stacked = {n: torch.stack([p.detach(), 2 * p.detach()]) for n, p in model.named_parameters()}
    found = vmap(grad(whole))(stacked)
    for i in range(2):
        torch.testing.assert_close(
            {n: g[i] for n, g in found.items()},
            grad(whole)({n: p[i] for n, p in stacked.items()}),
            rtol=1e-4,
            atol=1e-6,
        )
