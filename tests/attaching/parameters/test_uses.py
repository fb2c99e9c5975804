"""Parameters of no synapse, and weights of synapses outside of their layer's call: by what the forward pass does with them."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three layers with `use` between the second and the third; `W`, `token` and `gain` lie in no layer."""

    def __init__(self, use, before=None):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.words = nn.Embedding(16, 16)
        self.W, self.token, self.gain = (nn.Parameter(torch.randn(*shape)) for shape in ((16, 16), (1, 16), (16,)))
        self.use = use
        if before is not None:
            before(self)

    def forward(self, x):
        h = self.middle(self.first(x).tanh() + self.token) * self.gain
        return self.last(self.use(self, h))


def transformed(h, W):
    return F.linear(h, W)


PRODUCTS = {
    "F.linear": lambda net, h: F.linear(h, net.W),
    "@": lambda net, h: h @ net.W.t(),
    "einsum": lambda net, h: torch.einsum("bi,oi->bo", h, net.W),
    "addmm": lambda net, h: torch.addmm(net.token, h, net.W),
    "conv1d": lambda net, h: F.conv1d(h[:, :, None], net.W[:, :, None])[:, :, 0],
    "conv2d": lambda net, h: F.conv2d(h[:, :, None, None], net.W[:, :, None, None])[:, :, 0, 0],
    "bmm": lambda net, h: torch.bmm(h[None], net.W[None])[0],
    "stacked": lambda net, h: F.linear(h, torch.stack([net.W, net.W])[1]),
    "cast": lambda net, h: F.linear(h.double(), net.W.double()).float(),
    "computed": lambda net, h: F.linear(h, net.W - net.W.mean(1, keepdim=True)),
    "dot with a vector": lambda net, h: h * (h @ net.gain)[:, None],
    "from the left": lambda net, h: (net.W @ h.t()).t(),
    "in a function": lambda net, h: transformed(h, net.W),
    "in a partial": lambda net, h: partial(F.linear, weight=net.W)(h),
    "detached": lambda net, h: F.linear(h, net.W.detach()),
    "of parameters alone": lambda net, h: F.linear(h, net.W @ net.W),
    "query of an attention": lambda net, h: F.scaled_dot_product_attention(net.W[None], h[None], h[None])[0][: len(h)],
    "embedding": lambda net, h: h @ net.words.weight.t(),
    "both ways": lambda net, h: F.linear(h, net.W) + net.W[: len(h)],
}


@pytest.mark.parametrize("use", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_with_a_free_parameter_is_refused(use):
    net = Net(use)
    with pytest.raises(
        ValueError, match=r"its (W|gain|weight) is a weight, with .* multiplied in \w+ at test_uses.py:\d+ \("
    ):
        apical.attach(net, "fa", example_input=X)
    assert type(net.middle) is nn.Linear
    assert "forward" not in vars(net.middle)


OUTSIDE = {
    "F.linear": lambda net, h: F.linear(h, net.middle.weight, net.middle.bias),
    "transposed": lambda net, h: h @ net.middle.weight,
    "class's forward": lambda net, h: nn.Linear.forward(net.middle, h),
    "einsum": lambda net, h: torch.einsum("bi,oi->bo", h, net.middle.weight),
    "addmm": lambda net, h: torch.addmm(net.middle.bias, h, net.middle.weight),
    "conv2d": lambda net, h: F.conv2d(h[..., None, None], net.middle.weight[..., None, None]).flatten(1),
    "data": lambda net, h: F.linear(h, net.middle.weight.data),
    "cast": lambda net, h: F.linear(h.double(), net.middle.weight.double()).float(),
    "stacked": lambda net, h: F.linear(h, torch.stack([net.middle.weight, net.W])[0]),
    "elementwise": lambda net, h: h * net.middle.weight[0],
}
HOOKS = {
    "forward hook": lambda net: net.middle.register_forward_hook(lambda m, args, out: F.linear(out, m.weight)),
    "pre-hook": lambda net: net.middle.register_forward_pre_hook(lambda m, args: F.linear(args[0], m.weight)),
    "hook of another layer": lambda net: net.first.register_forward_hook(
        lambda m, args, out: F.linear(out, net.middle.weight)
    ),
}


@pytest.mark.parametrize("use", OUTSIDE.values(), ids=OUTSIDE)
def test_a_weight_outside_of_its_layers_call_is_refused(use):
    with pytest.raises(
        ValueError, match=r"middle: the weight of this Linear is used outside .* at test_uses.py:\d+ \("
    ):
        apical.attach(Net(use), "fa", example_input=X)


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_a_weight_in_a_hook_is_refused(hook):
    net = Net(lambda net, h: h)
    hook(net)
    with pytest.raises(ValueError, match=r"middle: the weight of this Linear is used outside"):
        apical.attach(net, "fa", example_input=X)


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_a_weight_outside_of_its_layers_call_goes_with_backpropagation_for_that_layer(rule):
    net = Net(OUTSIDE["F.linear"])
    rules = {"": rule, "middle": "bp"}
    learner = apical.attach(net, rules, example_input=X)
    report = apical.audit(learner, X, torch.tensor([0, 1, 2, 0]), nn.CrossEntropyLoss(reduction="none"))
    assert report.transported["middle"] == "weights"
    assert report.transported["last"] == "nothing"
    with pytest.raises(ValueError, match=r"first: the weight .* rule=\{'': ..., its name: 'bp'\}"):
        apical.attach(Net(lambda net, h: F.linear(h[:, :8], net.first.weight)), rules, example_input=X)


def test_a_layer_that_is_never_called_but_used_is_refused():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return F.linear(F.linear(x, self.a.weight).tanh(), self.b.weight)

    with pytest.raises(ValueError, match="- a, b: the weight of this Linear is used outside"):
        apical.attach(Around(), "fa", example_input=X)


def test_a_replaced_forward_is_refused_even_without_an_example():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    net[0].forward = lambda x: F.linear(x, net[0].weight)
    with pytest.raises(ValueError, match="0: Linear has a forward of its own"):
        apical.attach(net, "fa")


ALLOWED = {
    "nothing": lambda net, h: h,
    "added": lambda net, h: h + net.W[: len(h)],
    "bias of a product": lambda net, h: torch.addmm(net.token, h, torch.eye(16)),
    "concatenated": lambda net, h: torch.cat([net.token, h])[: len(h)],
    "looked up": lambda net, h: h + net.words(torch.arange(len(h))),
    "compared": lambda net, h: h * (h > net.gain),
    "stacked and added": lambda net, h: h + torch.stack([net.gain, net.gain]).double().float().sum(0),
    "product of constants": lambda net, h: h + torch.eye(16)[: len(h)] @ net.W,
    "normalization": lambda net, h: F.rms_norm(h, (16,), net.gain),
    "product without a graph": lambda net, h: h + no_grad(net, h),
    "through a layer": lambda net, h: h + net.middle(net.token.expand(len(h), -1)),
    "layer of a constant": lambda net, h: h + net.middle(torch.ones(len(h), 16)),
    "attention of activities": lambda net, h: F.scaled_dot_product_attention(h[None], h[None], h[None])[0],
    "decay": lambda net, h: torch.exp(-net.gain.exp()) * h,
}


@torch.no_grad()
def no_grad(net, h):
    return F.linear(h, net.W)


@pytest.mark.parametrize("use", ALLOWED.values(), ids=ALLOWED)
def test_other_parameters_learn_by_their_exact_gradient(use):
    torch.manual_seed(1)
    net = Net(use)
    learner = apical.attach(net, "fa", example_input=X)
    assert list(learner.synapses) == ["first", "middle", "last"]
    with torch.no_grad():
        for synapse in learner.synapses.values():
            if synapse.feedback is not None:
                synapse.feedback = synapse.weight
    y = torch.tensor([0, 1, 2, 0])
    F.cross_entropy(net(X), y).backward()
    found = {name: p.grad for name, p in net.named_parameters()}
    learner.detach()
    net.zero_grad()
    F.cross_entropy(net(X), y).backward()
    for name, p in net.named_parameters():
        if p.grad is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-5, atol=1e-6)


def test_without_an_example_the_parameters_are_named_with_the_ways_out():
    with pytest.raises(ValueError, match=r"holds W, token, gain, which no synapse covers.*or give example_input"):
        apical.attach(Net(lambda net, h: h), "fa")


class Layers(nn.Module):
    """Three layers with `use` between the second and the third."""

    def __init__(self, use):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.words = nn.Embedding(16, 16)
        self.use = use

    def forward(self, x):
        return self.last(self.use(self, self.middle(self.first(x).tanh())))


def trained(net, rule="fa", steps=2):
    learner = apical.attach(net, rule)
    for _ in range(steps):
        with torch.no_grad():
            net(X)
        net(X).square().mean().backward()
    return learner


@pytest.mark.parametrize(
    "use",
    [
        lambda net, h: h @ net.words.weight.t(),
        lambda net, h: F.linear(h, net.words.weight),
        lambda net, h: torch.einsum("bi,oi->bo", h, net.words.weight),
        lambda net, h: torch.addmm(net.middle.bias, h, net.words.weight),
    ],
)
def test_without_an_example_the_first_pass_tells_of_a_product_with_an_embedding(use):
    with pytest.raises(
        RuntimeError, match=r"- words: Embedding: its weight is a weight, .* in \w+ at a line .*nn\.Linear"
    ):
        trained(Layers(use))
    trained(Layers(use), "bp")


SEEN = [name for name in OUTSIDE if name not in ("data", "stacked", "elementwise")]


@pytest.mark.parametrize("use", SEEN)
def test_without_an_example_the_first_pass_tells_of_a_weight_outside_of_its_layers_call(use):
    net = Layers(OUTSIDE[use])
    with pytest.raises(
        RuntimeError, match=r"(?s)Layers can't .*- middle: the weight of this Linear is used .* in \w+ at a"
    ):
        trained(net)
    with pytest.raises(RuntimeError, match="- middle: the weight"):
        net(X)
    apical.learner_of(net).detach()
    trained(Layers(OUTSIDE[use]), {"": "fa", "middle": "bp"})
    copied = Layers(OUTSIDE[use])
    apical.attach(copied, "fa")
    with pytest.raises(RuntimeError, match="- middle: the weight"):
        copy.deepcopy(copied)(X)


@pytest.mark.parametrize("rule", ["fa", "kp", "wm"])
@pytest.mark.parametrize(
    "use",
    [
        lambda net, h: h,
        lambda net, h: net.middle(h).tanh() + h,
        lambda net, h: h + net.words(torch.arange(len(h))),
        lambda net, h: torch.bmm(h[None], h[None].mT)[0] @ h,
        lambda net, h: h + net.middle.bias,
        lambda net, h: h + 0 * net.middle.weight.sum(),
        lambda net, h: h + (torch.eye(16)[: len(h)] @ net.words.weight),
        lambda net, h: h + net.middle(net.words.weight[:1].expand(len(h), -1)),
    ],
)
def test_without_an_example_other_uses_are_let_through(use, rule):
    net = Layers(use)
    net.words.weight = net.middle.weight
    plain = len(net._forward_hooks)
    learner = trained(net, rule)
    learner.detach()
    assert len(net._forward_hooks) == plain


def test_without_an_example_the_first_pass_tells_of_rows_that_feedback_does_not_follow():
    with pytest.raises(
        RuntimeError, match=r"middle: the weight of this Linear learns outside .* in index\w* at a line"
    ):
        trained(Layers(lambda net, h: h + net.middle.weight[torch.arange(len(h))]), "kp")
    trained(Layers(lambda net, h: h + net.middle.weight[torch.arange(len(h))]), "fa")


def test_layers_alike_share_a_sentence():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.eye(8))

        def forward(self, x):
            return x @ self.W

    net = nn.Sequential(nn.Linear(8, 8), *(Odd() for _ in range(6)), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="1, 2, 3 and 3 more: Odd holds W, which") as error:
        apical.attach(net, "fa", example_input=X)
    assert str(error.value).count("\n") == 1


def test_a_registered_kind_answers_for_itself():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Parameter(torch.eye(8))

        def forward(self, x):
            return x @ self.W

    apical.register_synapse(Own, None)
    apical.attach(nn.Sequential(nn.Linear(8, 8), Own(), nn.Linear(8, 3)), "fa", example_input=X)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_audit_lists_a_multiplied_parameter_as_a_scale_and_an_added_one_as_nothing(rule):
    def kinds(net):
        learner = apical.attach(net, rule, example_input=X)
        return apical.audit(learner, X, torch.tensor([0, 1, 2, 0]), nn.CrossEntropyLoss(reduction="none")).transported

    class Adds(Net):
        def forward(self, x):
            return self.last(self.middle(self.first(x).tanh() + self.token).tanh() + self.W[: len(x)])

    assert kinds(Net(lambda net, h: h))["(model)"] == "normalization scale"
    assert kinds(Adds(None))["(model)"] == "nothing"
