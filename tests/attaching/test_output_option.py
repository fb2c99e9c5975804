"""output= says which tensor of a structured output carries the error."""

from __future__ import annotations

import collections
import dataclasses
import types

import pytest
import torch
from torch import Tensor, nn

from comparison import anatomy, untouched
from learning import attach, gradients
from networks import X, Y

Pair = collections.namedtuple("Pair", "logits hidden")


@dataclasses.dataclass(frozen=True)
class Out:
    logits: Tensor
    hidden: Tensor
    note: str = "kept"


@dataclasses.dataclass(slots=True)
class Slots:
    logits: Tensor
    hidden: Tensor


class Bag(dict):
    """A dict of its own kind with attributes too, as many model zoos return."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.tag = "kept"


class Packs(nn.Module):
    def __init__(self, pack) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.pack = pack

    def forward(self, x):
        h = self.body(x)
        return self.pack(self.head(h), h)


FORMS = {
    "tensor": (lambda o, h: o, None, lambda r: r),
    "only tensor of a dict": (lambda o, h: {"logits": o, "n": 3}, None, lambda r: r["logits"]),
    "only learnable of a dict": (lambda o, h: {"logits": o, "hidden": h.detach()}, None, lambda r: r["logits"]),
    "dict": (lambda o, h: {"hidden": h, "logits": o}, "logits", lambda r: r["logits"]),
    "ordered dict": (lambda o, h: collections.OrderedDict(a=h, logits=o), "logits", lambda r: r["logits"]),
    "own dict": (lambda o, h: Bag(hidden=h, logits=o), "logits", lambda r: r["logits"]),
    "dict with int keys": (lambda o, h: {0: h, 7: o}, 7, lambda r: r[7]),
    "tuple": (lambda o, h: (h, o), 1, lambda r: r[1]),
    "tuple from the end": (lambda o, h: (h, o), -1, lambda r: r[-1]),
    "list": (lambda o, h: [o, h], 0, lambda r: r[0]),
    "namedtuple": (lambda o, h: Pair(o, h), "logits", lambda r: r.logits),
    "namedtuple by index": (lambda o, h: Pair(o, h), 0, lambda r: r.logits),
    "frozen dataclass": (lambda o, h: Out(o, h), "logits", lambda r: r.logits),
    "slots dataclass": (lambda o, h: Slots(o, h), "logits", lambda r: r.logits),
    "object": (lambda o, h: types.SimpleNamespace(logits=o, hidden=h), "logits", lambda r: r.logits),
    "nested": (
        lambda o, h: {"aux": [h], "main": (3, {"y": [o]})},
        lambda r: r["main"][1]["y"][0],
        lambda r: r["main"][1]["y"][0],
    ),
    "callable on dataclass": (lambda o, h: Out(o, h), lambda r: r.logits, lambda r: r.logits),
    "same tensor under two names, first read": (lambda o, h: {"y": o, "logits": o}, "logits", lambda r: r["y"]),
    "same tensor under two names, last read": (lambda o, h: {"y": o, "logits": o}, "logits", lambda r: r["logits"]),
    "same tensor under two names of an object": (lambda o, h: Out(o, o), "hidden", lambda r: r.hidden),
    "same tensor twice, nested": (lambda o, h: ({"y": o}, [o, h]), lambda r: r[1][0], lambda r: r[1][0]),
    "same tensor twice in a tuple": (lambda o, h: (o, o), 1, lambda r: r[0]),
}


@pytest.mark.parametrize("rule", ["dfa", "kp-direct", "ifa"])
@pytest.mark.parametrize("form", FORMS)
def test_output_says_which_tensor_carries_the_error(form, rule):
    pack, which, read = FORMS[form]
    reference = Packs(lambda o, h: o)
    attach(reference, rule)
    expected = gradients(reference)
    model = Packs(pack)
    plain = model(X)
    attach(model, rule, output=which)
    out = model(X)
    assert type(out) is type(plain)
    nn.functional.cross_entropy(read(out), Y).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"{name} does not learn"
        torch.testing.assert_close(p.grad, expected[name])
    if isinstance(out, Bag):
        assert out.tag == "kept"
    if isinstance(out, Out):
        assert out.note == "kept"
        assert isinstance(out.hidden, Tensor)
    with torch.no_grad():
        assert type(model(X)) is type(plain)


def test_a_container_the_model_keeps_is_copied_not_changed():
    kept = []

    def pack(o, h):
        kept.append({"logits": o})
        return kept[-1]

    model = Packs(pack)
    attach(model, "dfa")
    out = model(X)
    assert out is not kept[-1]
    assert out["logits"] is not kept[-1]["logits"]


@pytest.mark.parametrize(
    ("pack", "which", "message"),
    [
        (lambda o, h: {"logits": o, "hidden": h}, None, r"output=.*logits.*hidden"),
        (lambda o, h: (o, h), None, r"output="),
        (lambda o, h: (o, h), 2, r"output=2"),
        (lambda o, h: {"logits": o}, "logit", r"'logit'.*logits"),
        (lambda o, h: Out(o, h), "note", r"output='note' picks a str"),
        (lambda o, h: {"logits": o, "hidden": h}, lambda r: r["nothing"], r"output="),
        (lambda o, h: (o, h), lambda r: r.logits, r"output="),
    ],
)
def test_an_output_that_cant_be_picked_is_named_at_attach(pack, which, message):
    model = Packs(pack)
    before = anatomy(model)
    with pytest.raises(ValueError, match=message):
        attach(model, "dfa", output=which)
    untouched(before, anatomy(model))


def test_an_output_computed_by_the_function_is_refused_at_attach():
    model = Packs(lambda o, h: (o, h))
    before = anatomy(model)
    with pytest.raises(ValueError, match="part of the model's tuple"):
        attach(model, "dfa", output=lambda r: r[0] * 2)
    untouched(before, anatomy(model))
