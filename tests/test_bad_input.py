"""What can't work is refused before anything changes: the right exception, the thing's name, the way out."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import apical
from apical.plasticity import Plasticity
from apical.synapses import registry
from apical.training import options as spec

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (8,), generator=torch.Generator().manual_seed(6))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def registered():
    saved = dict(registry.SYNAPSES)
    yield apical.register_synapse
    registry.SYNAPSES.clear()
    registry.SYNAPSES.update(saved)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def anatomy(model: nn.Module) -> dict:
    """Classes, attributes, hooks, tensors by identity and bits."""
    seen = {}
    for name, module in model.named_modules():
        tensors = {
            key: (id(value), value.requires_grad, value.detach().clone())
            for key, value in (*module._parameters.items(), *module._buffers.items())
            if value is not None and not nn.parameter.is_lazy(value)
        }
        hooks = {key: dict(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        rest = set(vars(module))
        seen[name] = (type(module), module.training, tensors, hooks, rest)
    return seen


def assert_untouched(before: dict, model: nn.Module) -> None:
    after = anatomy(model)
    assert before.keys() == after.keys()
    for name, (kind, training, tensors, hooks, rest) in before.items():
        assert after[name][0] is kind, name
        assert after[name][1] == training, name
        assert after[name][2].keys() == tensors.keys(), name
        for key, (identity, learns, value) in tensors.items():
            assert after[name][2][key][:2] == (identity, learns), (name, key)
            assert torch.equal(after[name][2][key][2], value), (name, key)
        assert after[name][3] == hooks, name
        assert after[name][4] == rest, name


def refused(model: nn.Module, rule="fa", error=ValueError, *, says: tuple[str, ...], **options) -> str:
    """attach fails with `error`, its message holds all of `says`, and neither model nor random state has changed."""
    before = anatomy(model)
    keys = list(model.state_dict())
    state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        apical.attach(model, rule, generator=torch.Generator().manual_seed(0), **options)
    message = str(caught.value)
    for part in says:
        assert part in message, f"{part!r} is not in: {message}"
    assert_untouched(before, model)
    assert list(model.state_dict()) == keys
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="nothing is attached"):
        apical.learner_of(model)
    return message


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dfaa", "'dfa'"),
        ("FA", "'fa'"),
        ("usff", "'usf'"),
        ("kp_direct", "'kp-direct'"),
        ("matchd", "'matched'"),
        ("Shallow", "'shallow'"),
    ],
)
def test_an_unknown_rule_offers_the_nearest_names(name, near):
    message = refused(chain(), name, says=(f"unknown rule {name!r}", "did you mean", near, "bp, shallow, fa"))
    assert message.index("did you mean") < message.index(near)
    with pytest.raises(ValueError, match="did you mean"):
        apical.rule(name)


def test_a_rule_like_nothing_lists_them_all():
    message = refused(chain(), "zzzzzzzz", says=("unknown rule 'zzzzzzzz'", *apical.rules()))
    assert "did you mean" not in message
    refused(chain(), "", says=("unknown rule ''",))


@pytest.mark.parametrize("rule", [3, None, apical.Rule, apical.LayerWise(), ["fa"], apical.Fixed()])
def test_a_rule_of_the_wrong_kind(rule):
    refused(chain(), rule, TypeError, says=("rule must be a name, a Rule, or a dict", "kp-direct"))


def test_hyperparameters_that_a_rule_does_not_have():
    for arguments, says in (
        (("fa", {"epsilon": 1}), r"'fa' has no hyperparameter 'epsilon'; it has track, init"),
        (("kp", {"epsilom": 1, "x": 2}), r"'kp' has no hyperparameter 'epsilom', 'x'; it has track, epsilon, init"),
        (("shallow", {"init": 1}), r"'shallow' has no hyperparameter 'init'; it has none"),
        (("brsf", {"magnitudes": "uniform"}), r"no hyperparameter 'magnitudes'"),
        (("dfa", {"track": True}), r"no hyperparameter 'track'"),
    ):
        with pytest.raises(ValueError, match=says):
            apical.rule(arguments[0], **arguments[1])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("kp", {"epsilon": -1}, "epsilon"),
        ("kp", {"epsilon": float("nan")}, "epsilon"),
        ("kp", {"epsilon": float("inf")}, "epsilon"),
        ("kp", {"epsilon": "1"}, "epsilon"),
        ("usf", {"scale": 0}, "scale"),
        ("usf", {"scale": -2.0}, "scale"),
        ("usf", {"scale": "big"}, "scale"),
        ("frsf", {"scale": 1.0}, "scale belongs to uniform"),
        ("frsf", {"init": "weights"}, "magnitudes of the weights"),
        ("fa", {"init": "xavier"}, "xavier"),
        ("fa", {"init": 3}, "init"),
    ],
)
def test_hyperparameters_out_of_range_are_named(name, value, says):
    model = chain()
    before = anatomy(model)
    with pytest.raises((ValueError, TypeError), match=says):
        apical.attach(model, apical.rule(name, **value))
    assert_untouched(before, model)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"decay": "a"}, "decay must be a number, got 'a'"),
        ({"rate": None}, "rate must be a number, got None"),
        ({"rate": [1]}, "rate must be a number"),
        ({"rate": True}, "rate must be a number, got True"),
        ({"activation": [1]}, "activation must be a name or a function"),
        ({"batches": None}, "batches must be a whole number, got None"),
        ({"batches": 0}, "batches must be a whole number of at least 1, got 0"),
        ({"warmup": 1.5}, "warmup must be a whole number"),
        (
            {"alternate": "no", "bias_blocking": 1},
            "bias_blocking must be True or False, got 1; alternate must be True or False",
        ),
    ],
)
def test_a_mirror_of_values_of_the_wrong_kind(values, says):
    with pytest.raises(ValueError, match=says):
        apical.Mirror(**values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wm:rate=fast", "rule 'wm': rate must be a number, got 'fast'"),
        ("wm:rate=True", "rule 'wm': rate must be a number, got True"),
        ("wm:decay=fast", "rule 'wm': decay must be a number, got 'fast'"),
        ("wm:alternate=x", "rule 'wm': alternate must be True or False, got 'x'"),
        ("wm:batch=2.5", "rule 'wm': batch must be a whole number or None, got 2.5"),
        ("wm:baseline=none", "rule 'wm': baseline must be 'batch-mean' or a number, got 'none'"),
        ("wm:activation=3", "rule 'wm': activation must be a name or a function, got 3"),
        ("urfb:epsilon=True", "rule 'urfb': epsilon must be a number, got True"),
        ("np:solver=[1]", "rule 'np': solver must be 'sgd' or 'ridge', got [1]"),
        ("fa:track=1", "rule 'fa': track must be True or False, got 1"),
        ("SGD:momentum=abc", "SGD: momentum must be a number, got 'abc'"),
        ("SGD:nesterov=false", "SGD: nesterov must be True or False, got 'false'"),
        ("StepLR:step_size=1.5", "StepLR: step_size must be a whole number, got 1.5"),
    ],
)
def test_options_of_a_wrong_kind_are_told_with_the_right_one(text, says):
    of = {"SGD": spec.optimizer_of, "StepLR": spec.scheduler_of}.get(text.partition(":")[0], spec.rule_of)
    with pytest.raises(ValueError, match=re.escape(says)):
        of(text)


def test_every_rule_takes_what_it_has():
    for name, one in apical.rules().items():
        assert apical.rule(name, **one.hyperparameters) == one
        assert (
            apical.rule(name, **{key: np.float64(v) for key, v in one.hyperparameters.items() if type(v) is float})
            == one
        )


def test_pairs_without_meaning():
    for pathway, plasticity, says in (
        ("direct", "transport", "only that synapse's own error"),
        ("direct", "signs", "goes with layer-wise"),
        ("indirect", "hebbian", "direct or layer-wise"),
        ("none", "fixed", "would never be used"),
        ("layer-wise", None, "give plasticity=, one of fixed, transport"),
    ):
        with pytest.raises(ValueError, match=says):
            apical.Rule(pathway=pathway, plasticity=plasticity)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [lambda x: x, 3, None, "resnet18", nn.Linear, {"a": nn.Linear(1, 1)}])
def test_a_model_that_is_no_module(model):
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got"):
        apical.attach(model, "fa")


@pytest.mark.parametrize(
    "model", [nn.Sequential(), nn.Sequential(nn.ReLU(), nn.Flatten()), nn.LayerNorm(4), nn.Embedding(3, 4)]
)
def test_a_model_without_synapses(model):
    refused(model, says=("no layer with weights",))


class Strange(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.kernel = nn.Parameter(torch.eye(4))
        self.register_parameter("nothing", None)

    def forward(self, x):
        return self.inner(x) @ self.kernel


def Buffered(name):
    layer = nn.Linear(4, 4)
    value = layer._parameters.pop(name).detach()
    layer.register_buffer(name, value)
    return layer


class MixingNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width)
        self.mix = nn.Parameter(torch.randn(width, width))

    def forward(self, x):
        return super().forward(x) @ self.mix


UNKNOWN = {
    "attention": (lambda: nn.MultiheadAttention(8, 2), ("1: MultiheadAttention", "scaled_dot_product_attention")),
    "lstm": (lambda: nn.LSTM(4, 5), ("1: LSTM", "nn.Linear")),
    "gru": (lambda: nn.GRU(4, 5), ("1: GRU", "nn.Linear")),
    "cell": (lambda: nn.LSTMCell(4, 5), ("1: LSTMCell", "nn.Linear")),
    "bilinear": (lambda: nn.Bilinear(4, 4, 5), ("1: Bilinear", "weight, bias", "register_synapse(Bilinear, ...)")),
    "subclass": (
        lambda: Strange(4, 4),
        ("1: Strange subclasses Linear", "register_synapse(Strange, apical.LinearSynapse)"),
    ),
    "raw": (lambda: Raw(), ("1: Raw holds kernel", "register_synapse(Raw, ...)", "register_synapse(Raw, None)")),
    "lazy linear": (lambda: nn.LazyLinear(4), ("1: LazyLinear", "run one forward pass")),
    "lazy convolution": (lambda: nn.LazyConv2d(4, 3), ("1: LazyConv2d", "run one forward pass")),
    "lazy norm": (lambda: nn.LazyBatchNorm1d(), ("1: LazyBatchNorm1d", "run one forward pass")),
    "parametrized": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        ("1: ParametrizedLinear computes weight", "parametrize.remove_parametrizations(layer, 'weight')"),
    ),
    "parametrized norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.LayerNorm(4)),
        ("1: ParametrizedLayerNorm computes weight", "parametrize.remove_parametrizations(layer, 'weight')"),
    ),
    "weight_norm": (
        lambda: nn.utils.weight_norm(nn.Linear(4, 4)),
        ("1: Linear computes weight", "torch.nn.utils.remove_weight_norm(layer, 'weight')"),
    ),
    "spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)),
        ("1: Conv2d computes weight", "torch.nn.utils.remove_spectral_norm(layer, 'weight')"),
    ),
    "pruned": (
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
        ("1: Linear computes weight", "torch.nn.utils.prune.remove(layer, 'weight')"),
    ),
    "pruned bias": (
        lambda: prune.l1_unstructured(nn.Linear(4, 4), "bias", 0.5),
        ("1: Linear computes bias", "torch.nn.utils.prune.remove(layer, 'bias')"),
    ),
    "buffer": (lambda: Buffered("weight"), ("1: Linear has its weight as no parameter", "nn.Parameter")),
    "bias as a buffer": (lambda: Buffered("bias"), ("1: Linear has its bias as no parameter", "nn.Parameter")),
    "mixing norm": (lambda: MixingNorm(4), ("1: MixingNorm holds mix,", "register_synapse(MixingNorm, None)")),
    "nested": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        ("1.self_attn: MultiheadAttention", "1.self_attn.out_proj: NonDynamicallyQuantizableLinear"),
    ),
}


@pytest.mark.parametrize("rule", ["fa", "bp", "dfa"])
@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:.*weight_norm. is deprecated")
def test_a_layer_that_is_no_known_synapse(kind, rule):
    make, says = UNKNOWN[kind]
    model = nn.Sequential(nn.Linear(4, 4), make())
    message = refused(model, rule, says=(*says, "Sequential"), example_input=X)
    assert "\n- 0:" not in message
    if kind not in ("nested", "attention"):
        assert message.count("\n- ") == 1


def test_every_fault_is_told_at_once():
    model = nn.Sequential(nn.Linear(4, 4), Strange(4, 4), nn.LSTM(4, 4), Raw())
    message = refused(model, "dfa", says=("1: Strange", "2: LSTM", "3: Raw", "needs example_input"))
    assert message.count("\n- ") == 4
    assert "inner" not in message


def test_a_model_that_is_itself_the_fault():
    refused(Raw(), says=("(the model itself): Raw holds kernel",))


def test_the_way_out_named_by_the_message_is_one(registered):
    model = nn.Sequential(nn.Linear(4, 4), Raw())
    refused(model, says=("register_synapse(Raw, None)",))
    registered(Raw, None)
    apical.attach(model, "fa")
    model(X).sum().backward()
    assert model[1].kernel.grad is not None
    apical.learner_of(model).detach()

    class Same(nn.Linear):
        pass

    model = nn.Sequential(Same(4, 4))
    refused(model, says=("register_synapse(Same, apical.LinearSynapse)",))
    registered(Same, apical.LinearSynapse)
    apical.attach(model, "fa")


@pytest.mark.parametrize("again", ["fa", "dfa", "bp"])
def test_attaching_twice(again):
    model = Named()
    learner = apical.attach(model, "fa")
    keys = list(model.state_dict())
    for part in (model, nn.Sequential(model)):
        with pytest.raises(ValueError, match=r"body\.0' is attached already; .*detach\(\)"):
            apical.attach(part, again, example_input=X)
    assert apical.learner_of(model) is learner
    assert list(model.state_dict()) == keys
    assert learner.rule.name == "fa"
    model(X).sum().backward()
    apical.learner_of(model).detach()
    apical.attach(model, again, example_input=X)


def test_the_way_out_of_attaching_around_an_attached_part_names_that_part():
    """learner_of(model) fails for the outer model: the message has to say whose learner it is."""
    part = chain()
    apical.attach(part, "fa")
    outer = nn.Sequential(nn.Linear(4, 4), part)
    with pytest.raises(ValueError, match="attached already") as caught:
        apical.attach(outer, "fa")
    with pytest.raises(ValueError, match="nothing is attached"):
        apical.learner_of(outer)
    assert "learner_of(model)" not in str(caught.value) or "1" in str(caught.value).split("learner_of")[1]


AFTER = {
    "pruned weight": ("weight", lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
    "pruned bias": ("bias", lambda layer: prune.l1_unstructured(layer, "bias", 0.5)),
    "weight_norm": ("weight", nn.utils.parametrizations.weight_norm),
}


@pytest.mark.parametrize("rule", ["fa", "bp", "dfa", "kp", "usf"])
@pytest.mark.parametrize("way", AFTER)
def test_a_parametrization_put_on_after_attach(way, rule):
    name, put_on = AFTER[way]
    model = chain()
    apical.attach(model, rule, example_input=X)
    put_on(model[2])
    with pytest.raises(RuntimeError, match=rf"the {name} of '2' is a parameter no longer.*take that off.*connectivity"):
        model(X).sum().backward()


def test_a_plasticity_of_ones_own_that_does_not_go_with_the_pathway():
    @dataclass(frozen=True)
    class Own(Plasticity):
        name: ClassVar[str] = "own"
        pathways: ClassVar[frozenset[str]] = frozenset({"layer-wise"})

    with pytest.raises(ValueError, match="'direct' with plasticity 'own' has no meaning; 'own' goes with layer-wise"):
        apical.Rule("direct", Own())


# example_input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["dfa", "ifa", "kp-direct"])
def test_example_input_that_is_missing(rule):
    refused(chain(), rule, says=(f"'{rule}' needs example_input", "one batch as the model takes it"))


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
        (chain, torch.randn(2, 5), "[2, 5]"),
        (chain, torch.zeros(2, 4, dtype=torch.long), "int64"),
        (chain, torch.randn(2, 4, dtype=torch.float64), "float64"),
        (chain, (torch.randn(2, 4), torch.randn(2, 4)), "[2, 4]"),
        (chain, {"x": torch.randn(2, 4)}, "x: of shape [2, 4]"),
        (chain, 3.0, "3.0"),
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


def test_a_model_that_returns_its_loss_has_no_error_per_sample():
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain()

        def forward(self, x, y):
            return nn.functional.cross_entropy(self.net(x), y)

    refused(Loss(), "dfa", says=("output",), example_input=(X, Y))
    message = refused(Loss(), "dfa", says=("output",), example_input=(X, Y))
    assert "does not pass through the model" not in message, "the input passed; the output is what is wrong"


def test_an_output_without_tensors_or_gradients():
    class Returns(nn.Module):
        def __init__(self, what) -> None:
            super().__init__()
            self.net = chain()
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


# at= ------------------------------------------------------------------------------------------------------------------


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
    refused(chain(), rule, says=("at=", f"'{rule}'", "leave it out"), example_input=X, at=["1"])


def test_at_names_a_module_that_the_pass_never_calls_or_that_returns_no_tensor():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.unused, self.pair = chain(), nn.ReLU(), Pair()

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
    model = nn.Sequential(chain(), nn.Identity())
    refused(model, "dfa", says=("output", "at=['1']", "Name modules before it"), example_input=X, at=["1"])
    refused(model, "dfa", says=("output", "at=['0']"), example_input=X, at=["0"])
    refused(model, "dfa", says=("output", "at=['0.3', '1']"), example_input=X, at=["0.3", "1"])


def test_at_names_a_module_with_a_feedback_of_its_own():
    model = Named()
    model.body.register_buffer("feedback", torch.ones(1))
    refused(model, "dfa", says=("'body'", "'feedback' of its own"), example_input=X, at=["body"])


# During training ------------------------------------------------------------------------------------------------------


def loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


@pytest.mark.parametrize(
    ("rule", "options"), [("kp", {}), ("urfb", {}), ("kp-direct", {}), ("kp-direct", {"at": ["1", "3"]})]
)
def test_an_optimizer_made_before_the_feedback_is_refused_at_its_first_step(rule, options):
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = apical.attach(model, rule, example_input=X, **options)
    weights = [p.detach().clone() for p in model.parameters()]
    loss(model).backward()
    with pytest.raises(RuntimeError, match=rf"feedback of .*'{rule}'.*after apical\.attach.*add_param_group"):
        optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    # The way out that the message names.
    optimizer.add_param_group({"params": learner.feedback_parameters()})
    before = [p.detach().clone() for p in learner.feedback_parameters()]
    optimizer.step()
    assert not any(torch.equal(p, b) for p, b in zip(learner.feedback_parameters(), before, strict=True))


def test_feedback_with_an_optimizer_of_its_own_is_fine():
    model = chain()
    forward = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = apical.attach(model, "kp", example_input=X)
    backward = torch.optim.SGD(learner.feedback_parameters(), lr=0.1)
    for _ in range(3):
        forward.zero_grad(), backward.zero_grad()
        loss(model).backward()
        forward.step(), backward.step()


def test_optimizers_of_other_models_and_made_after_are_left_alone():
    model, other = chain(), chain()
    apical.attach(model, "kp")
    optimizer, foreign = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(2):
        loss(model).backward(), loss(other).backward()
        optimizer.step(), foreign.step()
    last = torch.optim.SGD(model[4].parameters(), lr=0.1)
    loss(model).backward()
    last.step()


def test_an_optimizer_of_the_weights_after_detaching_is_fine():
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    apical.attach(model, "kp").detach()
    loss(model).backward()
    optimizer.step()


def test_the_guard_sees_a_deep_copy_and_an_unpickled_model():
    import copy
    import pickle

    model = chain()
    apical.attach(model, "kp", example_input=X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        optimizer = torch.optim.SGD(apical.learner_of(twin).forward_parameters(), lr=0.1)
        loss(twin).backward()
        with pytest.raises(RuntimeError, match="no optimizer holds the feedback"):
            optimizer.step()


@pytest.mark.parametrize("rule", ["dfa", "kp-direct", "ifa"])
def test_calling_a_part_of_a_directly_taught_model(rule):
    model = Named()
    apical.attach(model, rule, example_input=X)
    h = torch.randn(3, 6, requires_grad=True)
    for part, x in ((model.head, h), (model.body, X), (model.body[0], X)):
        with pytest.raises(
            RuntimeError, match=rf"'{'head' if part is model.head else 'body'}.*called on its own.*whole"
        ):
            part(x)
        with torch.no_grad():
            part(x)
    with pytest.raises(RuntimeError, match="called on its own"):
        model.forward(X)
    loss(model).backward()
    assert model.body[0].weight.grad is not None


def test_calling_a_part_of_a_model_whose_feedback_is_drawn_with_every_pass():
    model = Named()
    learner = apical.attach(model, "brsf", example_input=X)
    for call in (lambda: model.head(torch.randn(3, 6, requires_grad=True)), lambda: model.forward(X)):
        with pytest.raises(RuntimeError, match=r"called on its own.*drawn with every pass"):
            call()
    with torch.no_grad():
        model.head(torch.randn(3, 6))
    loss(model).backward()
    first = learner.synapses["head"].feedback.clone()
    loss(model).backward()
    assert not torch.equal(first, learner.synapses["head"].feedback)


def test_calling_a_part_of_a_model_taught_at_blocks():
    model = chain()
    apical.attach(model, "dfa", example_input=X, at=["1", "3"])
    with pytest.raises(RuntimeError, match="'1' was called on its own"):
        model[1](torch.randn(2, 6, requires_grad=True))


class AnySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
def test_an_input_of_another_size_than_the_example(rule):
    model = AnySize()
    apical.attach(model, rule, example_input=IMAGES)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'b' has shape \[4, 4, 6, 6\].*\[N, 4, 8, 8\].*example_input"):
            model(IMAGES[..., :6, :6])
        with pytest.raises(RuntimeError, match="called on its own"):
            model.b(torch.randn(2, 4, 8, 8))  # The pass that failed is over.
    with torch.no_grad():
        model(IMAGES[..., :6, :6])
    model(IMAGES[:3]).sum().backward()  # Any batch size.
    assert float(model.a.weight.grad.abs().sum()) > 0
    plain = AnySize()
    apical.attach(plain, "fa")
    plain(IMAGES[..., :6, :6]).sum().backward()


def test_an_output_of_another_size_than_the_example():
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.times = 1

        def forward(self, x):
            return self.b(torch.tanh(self.a(x))).repeat(1, self.times)

    model = Upsampling()
    apical.attach(model, "dfa", example_input=X)
    model.times = 2
    with pytest.raises(RuntimeError, match=r"output has 8 values per sample.*'b'.*for 4.*example_input"):
        model(X)
    model.times = 1
    model(X).sum().backward()


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


def test_feedback_of_the_wrong_shape_or_kind():
    model = chain()
    learner = apical.attach(model, "fa", example_input=X)
    synapse = learner.synapses["2"]
    before = synapse.feedback.clone()
    for wrong in (torch.ones(6, 5), torch.ones(36), torch.ones(1, 6, 6), torch.ones(())):
        with pytest.raises(ValueError, match=r"'2' has shape \[6, 6\], got \["):
            synapse.feedback = wrong
    with pytest.raises((TypeError, ValueError), match="feedback"):
        synapse.feedback = None
    with pytest.raises((TypeError, ValueError), match="feedback"):
        synapse.feedback = 3.0
    with pytest.raises(ValueError, match="'0' has no feedback weights to set"):
        learner.synapses["0"].feedback = torch.ones(6, 4)
    assert torch.equal(synapse.feedback, before)
    assert list(model.state_dict()) == [
        "0.weight",
        "0.bias",
        "2.weight",
        "2.bias",
        "2.feedback",
        "4.weight",
        "4.bias",
        "4.feedback",
    ]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("bp", "computed from the weights"),
        ("usf", "computed from the weights"),
        ("frsf", "computed"),
        ("shallow", "no feedback"),
    ],
)
def test_feedback_that_is_not_stored_cant_be_set(rule, says):
    learner = apical.attach(chain(), rule, example_input=X)
    with pytest.raises(ValueError, match=says):
        learner.synapses["2"].feedback = torch.ones(6, 6)


def test_feedback_set_as_a_parameter_stays_what_its_plasticity_makes_of_it():
    for rule in ("fa", "kp"):
        model = chain()
        learner = apical.attach(model, rule, example_input=X)
        count = len(list(model.parameters()))
        value = nn.Parameter(torch.full((6, 6), 0.5))
        learner.synapses["2"].feedback = value
        assert torch.equal(learner.synapses["2"].feedback, value)
        assert learner.synapses["2"].feedback is not value
        assert len(list(model.parameters())) == count


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


def test_a_generator_of_the_wrong_kind():
    for generator in (0, "seed", torch.manual_seed):
        model = chain()
        before = anatomy(model)
        with pytest.raises((TypeError, AttributeError), match="enerator"):
            apical.attach(model, "fa", generator=generator)
        assert_untouched(before, model)
