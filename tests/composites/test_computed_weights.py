"""Weights that a layer computes anew in every pass: the signal goes by B, the gradient on to what the weight is made of."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import apical
from composites.alike import end_alike

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 0])
LOSSES = nn.CrossEntropyLoss(reduction="none")


class Standardised(nn.Module):
    """Weight standardisation, as a parametrization."""

    def forward(self, weight):
        flat = weight.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(weight)


def standardised(layer):
    parametrize.register_parametrization(layer, "weight", Standardised())
    return layer


def biased(layer):
    return prune.l1_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "bias", 0.5)


MAKE = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "standardisation": standardised,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruned": biased,
}
each = pytest.mark.parametrize("kind", MAKE)


def chain(kind):
    torch.manual_seed(0)
    make = MAKE[kind]
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), make(nn.Linear(8, 8)), nn.Tanh(), make(nn.Linear(8, 3)))


def convolutional(kind):
    torch.manual_seed(0)
    make = MAKE[kind]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Tanh(),
        make(nn.Conv2d(4, 6, 3, stride=2, padding="valid")),
        nn.Tanh(),
        make(nn.Conv2d(6, 6, 2, padding=1, padding_mode="circular")),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def learn(net, x):
    net.zero_grad()
    LOSSES(net(x), TARGETS).mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if not name.endswith("feedback")}


@each
@pytest.mark.parametrize("rule", ["bp", "fa"])
@pytest.mark.parametrize(("make", "x"), [(chain, X), (convolutional, IMAGES)], ids=["linear", "convolution"])
def test_same_gradients_as_the_plain_network_where_the_feedback_is_the_weights(kind, rule, make, x):
    # Power iterations go on in training; both networks make the same ones.
    net, plain, x = make(kind).double(), make(kind).double(), x.double()
    state = copy.deepcopy(plain.state_dict())
    learner = apical.attach(net, rule, example_input=x)
    assert {
        name: value for name, value in net.state_dict().items() if not name.endswith("feedback")
    }.keys() == state.keys()
    net.eval(), plain.eval()
    net(x)
    if rule == "fa":
        for synapse in learner.synapses.values():
            if synapse.feedback is not None:
                synapse.feedback = synapse.weight.detach()
    found, expected = learn(net, x), learn(plain, x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    learner.detach()
    torch.testing.assert_close(net(x), plain(x))
    assert [type(m).__name__ for m in net.modules()] == [type(m).__name__ for m in plain.modules()]


RULES = ["bp", "fa", "dfa", "usf", "brsf", "wm", "np", "sg", "reinforce", "kp-direct"]


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        *(("weight norm", rule) for rule in RULES),
        *((kind, rule) for kind in MAKE for rule in ("bp", "brsf", "wm", "np")),
    ],
)
def test_rules_learn_and_the_audit_tells_what_they_transport(kind, rule):
    net = chain(kind)
    if "spectral" in kind and rule in ("np", "sg", "reinforce"):
        net.eval()  # Power iterations of training give each pass other weights, which these rules refuse.
    learner = apical.attach(net, rule, example_input=X)
    found = apical.audit(learner, X, TARGETS, LOSSES).transported
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    assert found == apical.audit(apical.attach(plain, rule, example_input=X), X, TARGETS, LOSSES).transported
    before = [p.detach().clone() for p in net[2].parameters()]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        LOSSES(net(X), TARGETS).mean().backward()
        learner.adapt(X, TARGETS, LOSSES)
        optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, net[2].parameters(), strict=True))


def test_feedback_alignment_is_that_of_the_weights_computed_beside():
    net = chain("weight norm")
    learner = apical.attach(net, "fa", example_input=X)
    B = learner.synapses["4"].feedback
    found = learn(net, X)
    h1 = net[0].infer(X).tanh().detach()
    W2, W3 = net[2].weight.detach(), net[4].weight.detach()
    h2 = (h1 @ W2.t() + net[2].bias.detach()).tanh()
    e = (h2 @ W3.t() + net[4].bias.detach()).softmax(1) - nn.functional.one_hot(TARGETS, 3)
    delta = (e / 4) @ B * (1 - h2**2)
    g, v = (p.detach().requires_grad_() for p in net[2].parametrizations.weight.parameters())
    (torch._weight_norm(v, g, 0) * (delta.t() @ h1)).sum().backward()
    torch.testing.assert_close(found["2.parametrizations.weight.original0"], g.grad, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found["2.parametrizations.weight.original1"], v.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["kp", "urfb"])
def test_hebbian_feedback_is_refused(rule):
    net = chain("weight norm")
    with pytest.raises(ValueError, match="computes them from others in every pass"):
        apical.attach(net, rule, example_input=X)
    apical.attach(net, {"": rule, "2": "fa", "4": "fa"}, example_input=X)


def test_connections_can_not_be_taken_from_computed_weights():
    with pytest.raises(ValueError, match="'2' computes its weights anew"):
        apical.attach(chain("weight norm"), "fa", connectivity=0.5)
    apical.attach(chain("weight norm"), "fa", connectivity={"0": 0.5})


def test_attaching_makes_no_power_iteration():
    net, plain = chain("spectral norm"), chain("spectral norm")
    apical.attach(net, "fa")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=0)


def test_local_updates_go_the_ordinary_way():
    nets = [chain("weight norm").double() for _ in range(2)]
    x = X.double()
    learners = [apical.attach(net, "fa", example_input=x, generator=torch.Generator().manual_seed(5)) for net in nets]
    optimizers = [torch.optim.SGD(nets[0].parameters(), 0.1), apical.LocalSGD(learners[1], lr=0.1)]
    end_alike(nets, optimizers, x, TARGETS, LOSSES)


def test_an_attached_network_is_copied():
    net = chain("weight norm")
    learner = apical.attach(net, "fa", example_input=X)
    twin = copy.deepcopy(net)
    torch.testing.assert_close(learn(twin, X), learn(net, X))
    learner.detach()
    assert isinstance(net[2], nn.Linear)
    assert not isinstance(net[2], apical.Synapse)
