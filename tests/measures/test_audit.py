import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import apical
from apical.synapses import registry

CRITERION = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")  # noqa: E731
SIGNS = ("usf", "brsf", "frsf")
NOTHING = ("shallow", "fa", "frfb", "dfa", "ifa", "kp", "matched", "urfb", "kp-direct")


def deep(depth, width=6, classes=5, norm=False, seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    layers = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def batch(n=4, width=6, classes=5):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, width, generator=g), torch.randint(classes, (n,), generator=g)


def transported(net, rule, width=6, **kwargs):
    x, y = batch(width=width)
    return apical.audit(apical.attach(net, rule, example_input=x, **kwargs), x, y, CRITERION).transported


def test_backpropagation_transports_weights():
    found = transported(deep(4), "bp")
    # The first layer's weights would only carry a signal to the data.
    assert found == {"0": "nothing", "2": "weights", "4": "weights", "6": "weights"}


@pytest.mark.parametrize("rule", SIGNS)
def test_sign_rules_transport_signs(rule):
    assert transported(deep(4), rule) == {"0": "nothing", "2": "signs", "4": "signs", "6": "signs"}


@pytest.mark.parametrize("rule", NOTHING)
def test_the_others_transport_nothing(rule):
    assert set(transported(deep(4), rule).values()) == {"nothing"}


@pytest.mark.parametrize("rule", ["fa", "dfa", "kp", "usf"])
def test_normalization_scale_is_its_own_line(rule):
    found = transported(deep(4, norm=True), rule)
    assert [found[name] for name in ("1", "4", "7")] == ["normalization scale"] * 3
    assert "weights" not in found.values()


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6, affine=False)])
@pytest.mark.parametrize("mode", [True, False])
def test_every_kind_of_normalization(norm, mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), norm, nn.Tanh(), nn.Linear(6, 5)).train(mode)
    assert transported(net, "fa") == {"0": "nothing", "1": "normalization scale", "3": "nothing"}


def test_convolutions_residuals_and_groups():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return torch.relu(x + self.b(torch.relu(self.a(x))))

    torch.manual_seed(0)
    x, y = torch.randn(3, 2, 6, 6), torch.tensor([0, 1, 2])
    for rule, hidden in (("bp", "weights"), ("usf", "signs"), ("fa", "nothing"), ("dfa", "nothing"), ("kp", "nothing")):
        net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), Block(), nn.Flatten(), nn.Linear(144, 3))
        found = apical.audit(apical.attach(net, rule, example_input=x), x, y, CRITERION).transported
        assert found == {"0": "nothing", "1.a": hidden, "1.b": hidden, "3": hidden}


class Copying(torch.autograd.Function):
    """Puts a copy of the weights by in the forward pass."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight.clone())
        return x @ weight.t()

    @staticmethod
    def backward(ctx, delta):
        x, weight = ctx.saved_tensors
        return delta @ weight, delta.t() @ x


class Unseen(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, x):
        return Copying.apply(x, self.kernel)


def plant(net, learner, name, how):
    synapse = learner.synapses[name]
    if how == "feedback is an alias of the weights":
        synapse._buffers["feedback"] = synapse.weight.detach()  # Set as `feedback`, it would be a copy.
    elif how == "a plasticity that transports":
        synapse.plasticity = apical.Transport()
    elif how == "a plasticity that transports signs":
        synapse.plasticity = apical.Signs()
    elif how == "a backward hook":
        synapse.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_out[0] @ module.weight,))
    elif how == "transmitting through the weights turned round":
        synapse.feed_back = lambda delta, B, shape, geometry=(): synapse.transmit(delta, synapse.weight.t(), None)
    elif how == "transmitting through the feedback":
        synapse.feed_back = lambda delta, B, shape, geometry=(): synapse.transmit(delta, B.t(), None)
    elif how == "a plain layer put in later":
        net[int(name)] = nn.Linear(6, 6)
    elif how == "a layer that attach never saw":
        net[int(name)] = Unseen(6)


PLANTS = {
    "feedback is an alias of the weights": "weights",
    "a plasticity that transports": "weights",
    "a plasticity that transports signs": "signs",
    "a backward hook": "weights",
    "transmitting through the weights turned round": "weights",
    "transmitting through the feedback": "nothing",
    "a plain layer put in later": "weights",
    "a layer that attach never saw": "weights",
}


@given(
    how=st.sampled_from(sorted(PLANTS)),
    layer=st.integers(1, 8),
    rule=st.sampled_from(["fa", "frfb"]),
    seed=st.integers(0, 50),
)
@settings(deadline=None, max_examples=25)
def test_a_transport_planted_in_one_layer_of_ten_is_found_there(how, layer, rule, seed):
    net = deep(10, seed=seed)
    x, y = batch()
    learner = apical.attach(net, rule, example_input=x, generator=torch.Generator().manual_seed(seed))
    plant(net, learner, str(2 * layer), how)
    found = apical.audit(learner, x, y, CRITERION).transported
    assert found.pop(str(2 * layer)) == PLANTS[how]
    assert set(found.values()) == {"nothing"}


@given(
    depth=st.integers(2, 6),
    norm=st.booleans(),
    activation=st.sampled_from([nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU]),
    rule=st.sampled_from(NOTHING),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_no_false_alarm_on_any_network(depth, norm, activation, rule, seed):
    if rule == "ifa":
        norm = False
    # Wide enough that no layer is dead under ReLU.
    found = transported(deep(depth, 12, norm=norm, seed=seed, activation=activation), rule, width=12)
    assert not {"weights", "signs"} & set(found.values())


def test_tied_weights_read_by_another_layer_are_transported():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

        def forward(self, x):
            h = torch.tanh(self.b(torch.tanh(self.a(x))))
            return self.head(torch.tanh(h @ self.b.weight))

    torch.manual_seed(0)
    # Without an example input, which would show that and be refused.
    x, y = batch(width=6)
    found = apical.audit(apical.attach(Tied(), "fa"), x, y, CRITERION).transported
    assert found == {"a": "nothing", "b": "weights", "head": "nothing"}


def embedded(tied=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 9, bias=False))
    if tied:
        net[3].weight = net[0].weight
    return net


TIED = {"bp": "weights", "usf": "signs", "brsf": "signs", "frsf": "signs"}


@pytest.mark.parametrize("rule", [*TIED, "fa", "dfa", "kp", "wm", "np", "sg", "reinforce"])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_tied_to_an_embedding_are_reported_as_those_of_layers_apart(rule, zero):
    g = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(9, (2, 12), generator=g)
    found = []
    for tied in (True, False):
        net = embedded(tied)
        if zero:
            nn.init.zeros_(net[3].weight)
        before = [(p, p.clone()) for p in net.parameters()]
        learner = apical.attach(net, rule, example_input=tokens)
        found.append(apical.audit(learner, tokens, targets, CRITERION).transported)
        assert (net[3].weight is net[0].weight) == tied
        assert all(torch.equal(p, was) for p, was in before)
    assert found[0] == found[1]
    assert found[0]["3"] == TIED.get(rule, "weights" if rule == "sg" else "nothing")
    # Its own gradient is made of the error at its output alone.
    assert found[0]["0"] == "nothing"


class Held(nn.Module):
    """Holds a layer's weights under a name of its own, and sends signals back through them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.held = None  # Taken hold of after attach, which refuses weights that no rule can reach.

    def forward(self, x):
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.head(h if self.held is None else torch.tanh(h @ self.held))


@pytest.mark.parametrize(("rule", "hidden"), [("fa", "nothing"), ("brsf", "signs"), ("bp", "weights")])
def test_a_module_that_holds_weights_of_a_synapse_answers_for_what_it_does_with_them(rule, hidden):
    torch.manual_seed(0)
    net = Held()
    x, y = batch()
    learner = apical.attach(net, rule, example_input=x)
    net.held = net.b.weight
    found = apical.audit(learner, x, y, CRITERION).transported
    assert found == {"(model)": "weights", "a": "nothing", "b": hidden, "head": hidden}
    assert net.held is net.b.weight


@pytest.mark.parametrize(
    "rule",
    [
        "kp-direct",
        apical.rule("kp-direct", epsilon=0),
        "dfa",
        "np-direct",
        apical.Rule(apical.Direct(), apical.Mirror()),
    ],
)
@pytest.mark.parametrize("at", [["0"], ["1"], ["0", "1"]])
def test_feedback_of_blocks_is_no_weight(rule, at):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)]
    found = transported(nn.Sequential(*blocks, nn.Linear(6, 5)), rule, at=at)
    assert found == {"0.0": "nothing", "1.0": "nothing", "2": "nothing"}


def test_parameters_of_a_block_are_told_from_its_feedback():
    x, y = batch()
    norm = nn.LayerNorm(6)
    net = nn.Sequential(nn.Linear(6, 6), norm, nn.Tanh(), nn.Linear(6, 5))
    learner = apical.attach(net, "kp-direct", example_input=x, at=["1"])
    found = apical.audit(learner, x, y, CRITERION).transported
    assert found == {"0": "nothing", "1": "normalization scale", "3": "nothing"}


class Casting(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("make", [nn.Sequential, Casting])
@pytest.mark.parametrize(
    ("rule", "hidden"),
    [
        ("bp", "weights"),
        ("brsf", "signs"),
        *((r, "nothing") for r in ("fa", "dfa", "wm", "np", "np-direct", "reinforce")),
    ],
)
def test_convolutions_under_autocast(make, rule, hidden):
    torch.manual_seed(0)
    x, y = torch.randn(6, 2, 4, 4), torch.randint(3, (6,))
    net = make(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(4, 3))
    learner = apical.attach(net, rule, example_input=x)
    with torch.autocast("cpu", torch.bfloat16, enabled=make is nn.Sequential):
        found = apical.audit(learner, x, y, CRITERION).transported
    assert found == {"0": "nothing", "2": hidden, "4": hidden}


class MixingNorm(nn.LayerNorm):
    def __init__(self, width, kernel):
        super().__init__(width)
        self.mix, self.kernel = nn.Parameter(torch.randn(width, width) / width**0.5), kernel

    def forward(self, x):
        return self.kernel(super().forward(x), self.mix)


@pytest.mark.parametrize("kernel", [F.linear, Copying.apply])
@pytest.mark.parametrize("affine", [True, False])
def test_weights_inside_a_normalization_are_no_scale(kernel, affine, monkeypatch):
    monkeypatch.setattr(registry, "SYNAPSES", {**registry.SYNAPSES, MixingNorm: None})
    norm = MixingNorm(6, kernel)
    if not affine:
        norm.weight = norm.bias = None
    net = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), norm, nn.Tanh(), nn.Linear(6, 5))
    assert transported(net, "fa") == {"0": "nothing", "1": "normalization scale", "3": "weights", "5": "nothing"}


def test_an_unseen_layer_that_is_called_by_name():
    class Net(nn.Sequential):
        def forward(self, x):
            first, middle, last = self
            return last(torch.tanh(middle(x=torch.tanh(first(x)))))

    net = Net(nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 5))
    net[1].forward = lambda x: x
    x, y = batch()
    learner = apical.attach(net, "fa", example_input=x)
    net[1] = Unseen(6)
    assert apical.audit(learner, x, y, CRITERION).transported == {"0": "nothing", "1": "weights", "2": "nothing"}


@pytest.mark.parametrize(("rule", "hidden"), [("fa", "nothing"), ("dfa", "nothing"), ("bp", "weights")])
def test_the_slope_of_an_activation_function_is_its_derivative(rule, hidden):
    net = nn.Sequential(nn.Linear(6, 7), nn.PReLU(), nn.Linear(7, 6), nn.PReLU(6), nn.Linear(6, 5))
    found = transported(net, rule)
    assert found == {"0": "nothing", "1": "nothing", "2": hidden, "3": "nothing", "4": hidden}


def test_weights_are_left_bit_for_bit_even_when_the_audit_fails():
    net = deep(3)
    x, y = batch()
    learner = apical.attach(net, "fa", example_input=x)
    before = [p.clone() for p in net.parameters()]
    calls = 0

    def failing(outputs, targets):
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RuntimeError("planted")
        return CRITERION(outputs, targets)

    with pytest.raises(RuntimeError, match="planted"):
        apical.audit(learner, x, y, failing)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all({"transmit", "infer"}.isdisjoint(vars(s)) for s in learner.synapses.values())


def test_a_batch_that_can_not_learn_is_refused():
    net = deep(3)
    x, y = batch()
    with pytest.raises(ValueError, match="not finite even before the audit"):
        apical.audit(apical.attach(net, "fa", example_input=x), x * float("nan"), y, CRITERION)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.head(x + self.b(torch.tanh(self.a(x))))


def normalized():
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5))


@pytest.mark.parametrize(
    ("rule", "hidden"), [("bp", "weights"), ("usf", "signs"), ("fa", "nothing"), ("wm", "nothing")]
)
@pytest.mark.parametrize(
    ("make", "zero", "synapses"),
    [
        (lambda: deep(3), "4", ["2", "4"]),
        (Residual, "b", ["a", "b", "head"]),
        (normalized, "3", ["2", "5"]),
    ],
)
def test_weights_that_are_all_zero_hide_nothing(rule, hidden, make, zero, synapses):
    torch.manual_seed(0)
    net = make()
    nn.init.zeros_(net.get_submodule(zero).weight)
    before = [p.clone() for p in net.parameters()]
    found = transported(net, rule)
    assert {found[name] for name in synapses} == {hidden}
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(("rule", "hidden"), [("bp", "weights"), ("usf", "signs"), ("dfa", "nothing")])
def test_a_layer_scale_that_starts_next_to_zero_hides_nothing(rule, hidden):
    net = Residual()
    with torch.no_grad():
        for p in (net.b.weight, net.b.bias):
            p.mul_(1e-5)
    before = net.b.weight.clone()
    found = transported(net, rule)
    assert {found[name] for name in ("a", "b", "head")} == {hidden}
    assert torch.equal(before, net.b.weight)


class Bypassed(nn.Module):
    """The first layer learns, but nothing that the second one sends back reaches it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.tanh(self.a(x))
        return self.head(x) + self.b(torch.relu(x - 2))


def dead():
    net = deep(4, activation=nn.ReLU)
    nn.init.constant_(net[2].bias, -100.0)
    return net


@pytest.mark.parametrize("rule", ["bp", "usf", "fa", "dfa", "shallow", "reinforce"])
@pytest.mark.parametrize(("make", "blind"), [(dead, r"\['2', '4'\]|\['4'\]"), (Bypassed, r"\['b'\]")])
def test_what_a_dead_layer_would_hide_is_refused(rule, make, blind):
    with pytest.raises(ValueError, match=f"of {blind} could not show .* another batch"):
        transported(make(), rule)


@pytest.mark.parametrize("rule", ["bp", "usf", "fa", "dfa"])
def test_an_error_of_zero_is_refused(rule):
    x, y = batch()
    learner = apical.attach(deep(3), rule, example_input=x)
    with pytest.raises(ValueError, match=r"of \['2', '4'\] could not show"):
        apical.audit(learner, x, y, lambda outputs, targets: (outputs - outputs.detach()).square().sum(1))


@pytest.mark.parametrize("rule", ["bp", "fa", "np", "wm"])
def test_an_empty_batch_is_refused(rule):
    x, y = batch()
    learner = apical.attach(deep(3), rule, example_input=x)
    with pytest.raises(ValueError, match="the batch is empty"):
        apical.audit(learner, x[:0], y[:0], CRITERION)


@pytest.mark.parametrize(("other", "carries"), [("bp", "weights"), ("usf", "signs")])
@pytest.mark.parametrize("phased", ["wm", "np"])
def test_a_warmup_hides_no_transport_of_another_rule(phased, other, carries):
    assert transported(deep(3), {"": apical.rule(phased, warmup=5), "4": other})["4"] == carries


@pytest.mark.parametrize("rule", ["wm", "np", "np-direct"])
def test_a_warmup_hides_no_normalization(rule):
    x, y = batch()
    learner = apical.attach(deep(3, norm=True), apical.rule(rule, warmup=5), example_input=x)
    assert apical.audit(learner, x, y, CRITERION).transported["4"] == "normalization scale"
    assert learner.adapted == 0


@pytest.mark.parametrize("rule", ["sg", "sg-direct", "np", "np-direct"])
def test_steps_of_feedback_are_judged_however_small(rule):
    x, y = batch(32)
    learner = apical.attach(deep(3), apical.rule(rule, rate=1e-4), example_input=x)
    found = apical.audit(learner, x, y, CRITERION).transported
    assert set(found.values()) == ({"nothing", "weights"} if "sg" in rule else {"nothing"})
    assert found["4"] == ("weights" if "sg" in rule else "nothing")


def test_feedback_of_zeros_hides_the_layers_before_it():
    rules = {"": "usf", "6": apical.rule("fa", init=nn.init.zeros_)}
    with pytest.raises(ValueError, match=r"of \['2', '4'\] could not show"):
        transported(deep(4), rules)


def test_frozen_layers_and_inputs_that_want_a_gradient_hide_nothing():
    net = deep(3)
    net[0].requires_grad_(False)
    assert transported(net, "bp") == {"0": "nothing", "2": "nothing", "4": "weights"}
    x, y = batch()
    learner = apical.attach(deep(3), "bp", example_input=x)
    found = apical.audit(learner, x.requires_grad_(), y, CRITERION).transported
    assert found == {"0": "nothing", "2": "weights", "4": "weights"}


def test_the_report_reads_as_lines():
    x, y = batch()
    report = apical.audit(apical.attach(deep(3, norm=True), "usf", example_input=x), x, y, CRITERION)
    assert report.summary == "signs, normalization scale"
    assert str(report).splitlines()[0] == "rule 'usf' transports: signs, normalization scale"
    assert "3  signs" in str(report)
