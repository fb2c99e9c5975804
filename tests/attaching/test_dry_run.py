"""example_input, output and at that can not work are told at attach."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

import apical
from attaching.refusals import IMAGES, Named, loss, refused
from networks import X, Y, plain_chain


@pytest.mark.parametrize("rule", ["dfa", "ifa", "kp-direct"])
def test_example_input_that_is_missing(rule):
    refused(plain_chain(), rule, says=(f"'{rule}' needs example_input", "one batch as the model takes it"))


class Picky(nn.Module):
    """Fails in as many ways as users' models do."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.kind = kind

    def forward(self, x):
        raise self.kind("something inside the model")


@pytest.mark.parametrize("rule", ["dfa", "fa"])
@pytest.mark.parametrize(
    ("make", "example", "shape"),
    [
        (plain_chain, torch.randn(2, 5), "[2, 5]"),
        (plain_chain, torch.zeros(2, 4, dtype=torch.long), "int64"),
        (plain_chain, torch.randn(2, 4, dtype=torch.float64), "float64"),
        (plain_chain, torch.randn(2, 4, dtype=torch.complex64), "complex64"),
        (plain_chain, torch.randn(2, 4, device="meta"), "(float32, on meta)"),
        (plain_chain, (torch.randn(2, 4), torch.randn(2, 4)), "[2, 4]"),
        (plain_chain, {"x": torch.randn(2, 4)}, "x: of shape [2, 4]"),
        (plain_chain, 3.0, "3.0"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)), torch.randn(2, 4), "[2, 4]"),
        (lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), torch.randn(3, 8, 8), "[3, 8, 8]"),
        (lambda: Picky(KeyError), X, "[8, 4]"),
        (lambda: Picky(AttributeError), X, "[8, 4]"),
        (lambda: Picky(AssertionError), X, "[8, 4]"),
        (lambda: Picky(ValueError), X, "[8, 4]"),
        (lambda: Picky(ZeroDivisionError), X, "[8, 4]"),
    ],
)
def test_example_input_that_does_not_pass(rule, make, example, shape):
    refused(make(), rule, says=("example_input", shape, "does not pass"), example_input=example)


def test_a_layer_that_is_called_with_activity_of_two_shapes_has_no_direct_feedback():
    class TwoLengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.first(x)
            return self.last(
                (self.shared(h[:, None]).mean(1) + self.shared(h[:, None].expand(-1, 5, -1)).sum(1)).tanh()
            )

    refused(
        TwoLengths(),
        "dfa",
        says=("'shared' is called with activity of shapes [1, 6] and [5, 6]", "one shape", "'shared': 'fa'"),
        example_input=X,
    )
    learner = apical.attach(TwoLengths(), {"": "dfa", "shared": "fa"}, example_input=X)
    learner.model(X).sum().backward()
    apical.attach(TwoLengths(), "fa", example_input=X)


def test_a_model_that_returns_its_loss_has_no_error_per_sample():
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain_chain()

        def forward(self, x, y):
            return nn.functional.cross_entropy(self.net(x), y)

    refused(Loss(), "dfa", says=("output",), example_input=(X, Y))
    message = refused(Loss(), "dfa", says=("output",), example_input=(X, Y))
    assert "does not pass through the model" not in message, "the input passed; the output is what is wrong"


def test_an_output_without_tensors_or_gradients():
    class Returns(nn.Module):
        def __init__(self, what) -> None:
            super().__init__()
            self.net = plain_chain()
            self.what = what

        def forward(self, x):
            return self.what(self.net(x))

    refused(Returns(lambda y: None), "dfa", says=("returns a NoneType", "output="), example_input=X)
    refused(Returns(lambda y: y.detach()), "dfa", says=("depends on no weights",), example_input=X)
    refused(Returns(lambda y: y.argmax(1)), "dfa", says=("depends on no weights",), example_input=X)
    refused(Returns(lambda y: [y, y]), "dfa", says=("output=",), example_input=X)
    refused(Returns(lambda y: types.SimpleNamespace(a=1)), "dfa", says=("output=",), example_input=X)


def test_a_rule_that_goes_forward_refuses_layers_that_change_shape_between_synapses():
    class Reshapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(self.fc(self.conv(x).flatten(1)))

    refused(Reshapes(), "ifa", says=("'ifa'", "'conv'", "'fc'", "use 'dfa'"), example_input=IMAGES)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (["bodi"], ("'bodi'", "no such module", "body, body.0")),
        (["body", "head.weight"], ("'head.weight'", "no such module")),
        ([""], ("''", "no such module")),
        ([3], ("3", "no such module")),
        ("body", ("the string 'body'", "at=['body']")),
        (1, ("at= takes a list of module names, got 1", "at=['body']")),
        (0, ("at= takes a list of module names, got 0",)),
        (iter(["body"]), ("at= takes a list of module names, got <list_iterator",)),
        ([["body"]], ("at= names ['body']", "no such module")),
        ([], ("at= is empty",)),
        (["head"], ("at= names 'head'",)),
        (["body", "body"], ("body",)),
    ],
)
def test_at_that_names_nothing_usable(at, says):
    model = Named()
    if at == ["body", "body"]:
        try:
            apical.attach(model, "dfa", example_input=X, at=at)
        except ValueError as error:
            assert "body" in str(error)  # noqa: PT017
        else:  # Or it counts once.
            model(X).sum().backward()
            once = Named()
            once.load_state_dict(model.state_dict(), strict=False)
            apical.attach(once, "dfa", example_input=X, at=["body"])
            once.body.feedback.copy_(model.body.feedback)
            once(X).sum().backward()
            assert apical.learner_of(once).blocks.keys() == apical.learner_of(model).blocks.keys()
        return
    refused(model, "dfa", says=says, example_input=X, at=at)


@pytest.mark.parametrize("rule", ["fa", "bp", "ifa", "shallow", "kp"])
def test_at_for_rules_that_have_no_use_for_it(rule):
    refused(plain_chain(), rule, says=("at=", f"'{rule}'", "leave it out"), example_input=X, at=["1"])


def test_at_names_a_module_that_the_pass_never_calls_or_that_returns_no_tensor():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.unused, self.pair = plain_chain(), nn.ReLU(), Pair()

        def forward(self, x):
            a, _ = self.pair(x)
            return self.net(a)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x):
            return self.lin(x), x

    refused(Odd(), "dfa", says=("unused", "never reaches"), example_input=X, at=["unused"])
    refused(Odd(), "dfa", says=("'pair'", "returns a tuple", "return a tensor"), example_input=X, at=["pair"])


def test_at_names_the_output_itself():
    model = nn.Sequential(plain_chain(), nn.Identity())
    refused(model, "dfa", says=("output", "at=['1']", "Name modules before it"), example_input=X, at=["1"])
    refused(model, "dfa", says=("output", "at=['0']"), example_input=X, at=["0"])
    refused(model, "dfa", says=("output", "at=['0.3', '1']"), example_input=X, at=["0.3", "1"])


def test_at_names_a_module_with_a_feedback_of_its_own():
    model = Named()
    model.body.register_buffer("feedback", torch.ones(1))
    refused(model, "dfa", says=("'body'", "'feedback' of its own"), example_input=X, at=["body"])


class Folds(nn.Module):
    """Puts positions into the batch, as attention over windows does: rows of activity are not rows of output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mid, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        n, t, _ = x.shape
        h = torch.tanh(self.mid(torch.tanh(self.inner(x.reshape(n * t, -1))))).view(n, t, -1)
        return self.head(h.mean(1))


def test_a_batch_that_is_not_in_the_first_dimension_throughout_is_refused_at_attach():
    """The dry run has seen it; training would only meet it at the first batch."""
    refused(Folds(), "dfa", says=("'mid'", "batch in the first dimension", "at="), example_input=torch.randn(2, 5, 4))


def test_an_example_input_that_takes_another_way_than_training():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.deep = False

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.c(torch.tanh(self.b(h)) if self.deep else h)

    model = Optional()
    apical.attach(model, "dfa", example_input=X)
    model.deep = True
    with pytest.raises(RuntimeError, match=r"'b'.*example_input.*\{'': \.\.\., 'b': 'fa'\}"):
        model(X)
    model.deep = False
    loss(model).backward()
    apical.learner_of(model).detach()
    learner = apical.attach(model, {"": "dfa", "b": "fa"}, example_input=X)
    model.deep = True
    model.zero_grad()
    a, b, c = (learner.synapses[name] for name in "abc")
    with torch.no_grad():
        h = torch.tanh(a(X))
        g = torch.tanh(b(h))
        e = torch.softmax(c(g), 1) - nn.functional.one_hot(Y, 3)
    loss(model).backward()
    delta = (e @ c.feedback * (1 - g**2)) @ b.feedback * (1 - h**2)
    torch.testing.assert_close(a.weight.grad, delta.t() @ X / len(X))


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa", "frsf"])
def test_a_model_without_values_is_refused(rule):
    model = plain_chain().to("meta")
    with pytest.raises(ValueError, match=r"meta device, where weights have no values.*to_empty"):
        apical.attach(model, rule, example_input=X.to("meta"))
    assert type(model[0]) is nn.Linear
    with pytest.raises(ValueError, match=r"does not pass through the model: .* meta"):
        apical.attach(model, rule, example_input=X)


class TrainingAlone(nn.Module):
    """A layer, and a free parameter, that only training uses, so that the example does not show them."""

    def __init__(self, free: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.aside, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.W = nn.Parameter(torch.randn(6, 6)) if free else None

    def forward(self, x):
        h = torch.tanh(self.body(x))
        if self.training:
            h = h + torch.tanh(self.aside(h) if self.W is None else h @ self.W)
        return self.head(h)


def test_a_layer_that_the_example_does_not_show_learns_as_one_that_it_does():
    nets = [TrainingAlone(False), TrainingAlone(False)]
    for net, example in zip(nets, (X, None), strict=True):
        learner = apical.attach(net, "fa", example_input=example, generator=torch.Generator().manual_seed(1))
        assert learner.synapses["aside"].feedback is not None
        nn.functional.cross_entropy(net(X), Y).backward()
    for mine, its in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_a_weight_that_the_example_does_not_show_is_refused_by_the_first_pass_that_learns(rule):
    net = TrainingAlone(True)
    apical.attach(net, rule, example_input=X)
    net.eval()(X).sum().backward()
    net.train()
    with torch.no_grad():
        net(X)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"\(the model itself\): .* \(its W is a weight, .* multiplied in mm at a line"
        ):
            net(X)
    apical.attach(TrainingAlone(True), "bp", example_input=X).model(X)
