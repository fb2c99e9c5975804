"""Passes beside the training loop leave every module with what it held, whatever that is and whatever the pass does to it."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from apical.phases.module_state import State
from networks import dynamo

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (8,), generator=torch.Generator().manual_seed(6))


@dataclass
class Memory:
    h: torch.Tensor
    steps: int = 0
    past: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class Slotted:
    h: torch.Tensor
    t: int = 0


class Keeping(nn.Module):
    """A recurrent network of one or another kind of state; `start` puts it there, `go` is its part of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.i, self.r, self.o = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.start()

    def start(self) -> None:
        pass

    def go(self, z: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x):
        return self.o(torch.tanh(self.r(self.go(torch.tanh(self.i(x))))))


class Attribute(Keeping):
    def start(self):
        self.h = None

    def go(self, z):
        self.h = z if self.h is None else z + 0.1 * self.r(self.h.detach())
        return self.h


class Lazy(Keeping):
    """An attribute that is not there before the first pass, and one that is not there after it."""

    def start(self):
        self.first = True

    def go(self, z):
        if hasattr(self, "first"):
            del self.first
        self.h = 0.1 * getattr(self, "h", 0) + z.detach()
        return z + self.h


class InPlace(Keeping):
    def start(self):
        self.h = torch.zeros(8, 6)

    def go(self, z):
        z = z + 0.1 * self.h
        self.h.copy_(z.detach())
        return z


class Pointed(Keeping):
    """The memory of a tensor is exchanged, which gives it another shape too."""

    def start(self):
        self.h = torch.zeros(1)
        self.register_buffer("b", torch.zeros(1))

    def go(self, z):
        z = z + 0.1 * self.h + 0.1 * self.b
        self.h.data = z.detach()
        self.b.data = z.detach().clone()
        return z


class Buffer(Keeping):
    def start(self):
        self.register_buffer("h", torch.zeros(8, 6))
        self.register_buffer("mean", torch.zeros(6))

    def go(self, z):
        z = z + 0.1 * self.h
        self.h = z.detach()
        self.mean.mul_(0.9).add_(z.detach().mean(0))
        return z


class LateBuffer(Keeping):
    def start(self):
        self.register_buffer("none", None)

    def go(self, z):
        self.register_buffer("h", z.detach(), persistent=False)
        self.none = z.detach()
        return z


class NewBuffer(Keeping):
    """The first buffer of a module is registered in the pass; another module's attribute is set from outside."""

    def go(self, z):
        self.register_buffer("h", z.detach())
        self.i.last = z
        return z


class Containers(Keeping):
    def start(self):
        self.pair, self.named = (torch.zeros(8, 6), torch.zeros(8, 6)), {"h": torch.zeros(8, 6), "deep": [{"t": 0}]}
        self.past, self.last, self.met, self.order = [], deque([torch.zeros(6)], maxlen=2), set(), OrderedDict(a=1, b=2)
        self.counts = Counter(x=3)

    def go(self, z):
        z = z + 0.1 * self.named["h"] + 0.1 * self.pair[0]
        self.pair[1].add_(1)
        self.pair = (z.detach(), z.detach())
        self.named["h"], self.named[tuple(z.shape)] = z.detach(), 1
        self.named["deep"][0]["t"] += 1
        self.past.append(z)
        self.last.append(z.detach().mean(0))
        self.met.add(len(self.past))
        self.order.move_to_end("a")
        self.counts["x"] += 1
        return z


class Objects(Keeping):
    def start(self):
        self.memory, self.space = Memory(torch.zeros(8, 6)), SimpleNamespace(t=0)
        self.slotted = Slotted(torch.zeros(6))
        self.array, self.hidden = np.zeros(3), [nn.BatchNorm1d(6)]

    def go(self, z):
        z = z + 0.1 * self.memory.h
        self.memory.h = self.hidden[0].train()(z).detach()
        self.memory.steps += 1
        self.memory.past.append(z)
        self.space.t += 1
        self.slotted.h, self.slotted.t = z.detach().mean(0), self.slotted.t + 1
        self.array += 1
        return z


class Numbers(Keeping):
    """Counts, and draws from generators of its own and of everybody's."""

    def start(self):
        self.t, self.best = 0, 1.0
        self.own, self.pure = torch.Generator().manual_seed(3), random.Random(3)
        self.numpy, self.legacy = np.random.default_rng(3), np.random.RandomState(3)

    def go(self, z):
        self.t += 1
        self.best = min(self.best, float(z.detach().mean()))
        torch.rand(1, generator=self.own), self.pure.random(), self.numpy.random(), self.legacy.rand()
        return z


class Modes(Keeping):
    """Its pass sets a mode, and another submodule in the place of one."""

    def start(self):
        self.drop, self.act, self.other = nn.Dropout(0.0), nn.Identity(), nn.Identity()

    def go(self, z):
        self.drop.train(not self.drop.training)
        self.act, self.other = self.other, self.act
        return self.act(z)


KINDS = (Attribute, Lazy, InPlace, Pointed, Buffer, LateBuffer, NewBuffer, Containers, Objects, Numbers, Modes)


OWN = {*vars(nn.Module()), *apical.Synapse.__annotations__, "_apical_learner", "apical_kept"}
"""Attributes that are PyTorch's and apical's own."""


def seen(value: object) -> object:
    """Everything in a value, by identity and by content."""
    if isinstance(value, torch.Tensor):
        return id(value), value.grad_fn, value.detach().tolist(), value.data_ptr()
    if isinstance(value, nn.Module):
        buffers = {name: one for name, one in value._buffers.items() if name != "feedback"}  # What a phase learns.
        return id(value), [seen(one) for one in (vars(value), value._parameters, value._modules)], seen(buffers)[2]
    if isinstance(value, dict):
        names = [name for name in value if name not in OWN]
        ordered = names if "training" not in value else sorted(names)
        return id(value), value.get("training"), [(name, seen(value[name])) for name in ordered]
    if isinstance(value, list | tuple | deque | set):
        return id(value), [seen(one) for one in value]
    if isinstance(value, np.ndarray):
        return id(value), value.tolist()
    if isinstance(value, torch.Generator):
        return id(value), value.get_state().tolist()
    if isinstance(value, random.Random):
        return id(value), value.getstate()
    if isinstance(value, np.random.Generator):
        return id(value), str(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return id(value), str(value.get_state())
    if isinstance(value, Slotted):
        return id(value), seen(value.h), value.t
    if isinstance(value, Memory | SimpleNamespace):
        return id(value), seen(vars(value))
    return value if isinstance(value, int | float | str) else id(value)


def world() -> object:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("kind", KINDS)
def test_the_dry_run_of_attach_leaves_everything_as_it_was(kind):
    net, plain = kind(), kind()
    for passed in (False, True):
        if passed:
            net(X), plain(X)
        before = seen(net)
        learner = apical.attach(net, "fa", example_input=X, generator=torch.Generator().manual_seed(1))
        learner.detach()
        assert seen(net) == before
        assert torch.equal(net(X), plain(X))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_measuring_leaves_everything_as_it_was(kind, shown):
    net = kind()
    learner = apical.attach(net, "fa", example_input=X if shown else None)
    cross_entropy(net(X), Y).mean().backward()
    before, outside, x, y = seen(net), world(), seen(X), seen(Y)
    apical.alignment(learner, X, Y, cross_entropy)
    assert (seen(net), world()) == (before, outside)
    apical.audit(learner, X, Y, cross_entropy)
    assert (seen(net), world(), seen(X), seen(Y)) == (before, outside, x, y)


PHASED = ("wm", apical.Rule("direct", "mirror"), "np", "sg-direct", "reinforce")


@pytest.mark.parametrize("rule", PHASED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_phase_leaves_everything_as_it_was(kind, rule):
    """Also where it refuses, because what passes before have left changes the output of the pass that it repeats."""
    net = kind()
    learner = apical.attach(net, rule, example_input=X)
    cross_entropy(net(X), Y).mean().backward()
    before, outside, x, y = seen(net), world(), seen(X), seen(Y)
    repeats = kind in (LateBuffer, NewBuffer, Numbers, Modes) or learner.rule.plasticity.name == "mirror"
    if repeats:
        learner.adapt(X, Y, cross_entropy)
    else:
        with pytest.raises(RuntimeError, match="gives another output when the same batch passes"):
            learner.adapt(X, Y, cross_entropy)
    assert (seen(net), world(), seen(X), seen(Y)) == (before, outside, x, y)


class Late(nn.Module):
    """Begins to keep something when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.i, self.norm, self.o = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.keeps, self.t, self.past, self.memory = "", 0, [], Memory(torch.zeros(6))

    def forward(self, x):
        z = torch.tanh(self.norm(self.i(x)))
        if self.keeps == "counts":
            self.t += 1
        if self.keeps == "depends":
            self.t += 1
            z = z * self.t
        if self.keeps == "lists":
            self.past.append(z)
            self.memory.steps += 1
        if self.keeps == "elsewhere":
            self.i.last = z
        if self.keeps == "in training" and self.training:
            self.memory.h.copy_(z.detach().mean(0))
        return self.o(z)


def phase(net: nn.Module) -> None:
    cross_entropy(net(X), Y).mean().backward()
    before = seen(net)
    apical.learner_of(net).adapt(X, Y, cross_entropy)
    assert seen(net) == before


@pytest.mark.parametrize("rule", [apical.Rule("direct", "mirror"), "np"])
@pytest.mark.parametrize("keeps", ["counts", "lists", "elsewhere", "in training"])
def test_what_a_module_begins_to_keep_later_is_left_as_it_was_too(keeps, rule):
    net = Late()
    net.keeps = keeps if keeps == "in training" else ""
    apical.attach(net, rule, example_input=X)
    net.train(keeps != "in training")
    for _ in range(4):
        phase(net)
    net.keeps = keeps
    net.train()
    for _ in range(3):  # No phase in which everything is looked at anyhow.
        phase(net)


def test_a_tensor_that_begins_to_be_written_is_left_as_it_was_from_the_next_phase_on():
    net = Late()
    apical.attach(net, "np", example_input=X)
    for _ in range(4):
        phase(net)
    net.keeps = "in training"
    cross_entropy(net(X), Y).mean().backward()
    apical.learner_of(net).adapt(X, Y, cross_entropy)
    net.memory.h.zero_()
    for _ in range(2):
        phase(net)


@pytest.mark.parametrize("rule", ["np", "sg"])
def test_where_nothing_is_kept_a_phase_saves_nothing(rule, monkeypatch):
    made = []
    monkeypatch.setattr("apical.phases.isolation.State", lambda *given: made.append(given) or State(*given))
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    apical.attach(net, rule, example_input=X)
    counts = []
    for _ in range(9):
        made.clear()
        phase(net)
        counts.append(len(made) > 0)
    assert counts == [True, True, False, True, False, False, False, True, False]


def test_a_model_that_begins_to_depend_on_the_pass_before_is_refused_from_the_next_phase_on():
    net = Late()
    apical.attach(net, "np", example_input=X)
    for _ in range(4):
        phase(net)
    net.keeps = "depends"
    phase(net)
    with pytest.raises(RuntimeError, match="gives another output when the same batch passes"):
        phase(net)


def test_copies_and_state_dicts_are_those_of_a_model_without_phases():
    net = Late()
    apical.attach(net, "np", example_input=X)
    names = list(net.state_dict())
    phase(net)
    for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        one.keeps = "counts"
        phase(one)
        phase(one)
        assert list(one.state_dict()) == names
    apical.learner_of(net).detach()
    assert list(net.state_dict()) == [name for name in names if name != "o.feedback"]


def test_without_a_graph_of_the_users_own_nothing_moves_either():
    net = Containers()
    before = seen(net)
    with torch.no_grad():
        learner = apical.attach(net, "dfa", example_input=X, generator=torch.Generator().manual_seed(1))
        apical.alignment(learner, X, Y, cross_entropy)
    learner.detach()
    assert seen(net) == before


@dynamo
def test_compiled_models_keep_what_they_hold():
    torch.compiler.reset()
    net = Late()
    learner = apical.attach(net, "np", example_input=X)
    net.compile(backend="eager")
    net.keeps = "counts"
    for _ in range(3):
        cross_entropy(net(X), Y).mean().backward()
        compiled, t, mean = net._compiled_call_impl, net.t, net.norm.running_mean.clone()
        learner.adapt(X, Y, cross_entropy)
        apical.alignment(learner, X, Y, cross_entropy)
        assert (net._compiled_call_impl, net.t) == (compiled, t)
        assert torch.equal(mean, net.norm.running_mean)


class Draws(nn.Module):
    """Its pass draws from all global generators, clips a weight, writes to its input and asks for a gradient there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.i, self.o = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        torch.rand(1), random.random(), np.random.rand()
        with torch.no_grad():
            self.i.weight.clamp_(-0.1, 0.1)
            x.mul_(2)
        return self.o(torch.tanh(self.i(x)))


def test_weights_inputs_and_everybodys_random_numbers_stay_as_they_were():
    net, x = Draws(), X.clone().requires_grad_()
    before = seen(net), seen(x), world()
    learner = apical.attach(net, "fa", example_input=x, generator=torch.Generator().manual_seed(1))
    for measure in (apical.alignment, apical.audit):
        measure(learner, x, Y, cross_entropy)
    assert x.grad is None
    learner.detach()
    assert (seen(net), seen(x), world()) == before
    learner = apical.attach(net, "wm", example_input=x)
    before = seen(x), world()
    learner.adapt(x, Y, cross_entropy)
    assert (seen(x), world()) == before


class Grown(nn.Module):
    """Makes its head when it sees how wide that has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), None

    def forward(self, x):
        h = torch.tanh(self.body(x))
        if self.head is None:
            self.head = nn.Linear(h.shape[1], 3)
        return self.head(h)


def test_layers_that_the_dry_run_makes_are_told():
    net = Grown()
    with pytest.raises(ValueError, match=r"first forward pass makes layers \(head.*call the model on a batch before"):
        apical.attach(net, "fa", example_input=X)
    assert net.head is None
    assert list(dict(net.named_children())) == ["body"]
    net(X)
    assert list(apical.attach(net, "fa", example_input=X).synapses) == ["body", "head"]


def test_a_graph_of_the_dry_run_that_somebody_has_kept_teaches_nothing():
    """It is the plain network's, through the transposed weights."""
    net, kept = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), []
    net[3].register_forward_hook(lambda module, args, output: kept.append(output))
    apical.attach(net, "dfa", example_input=X)
    with pytest.raises(RuntimeError, match=r"activity of the dry run.*clear what was kept there after attach"):
        kept[0].sum().backward()
    assert all(p.grad is None for p in net.parameters())


def test_a_network_that_differentiates_inside_its_pass():
    class Energy(nn.Module):
        def __init__(self, functional):
            super().__init__()
            self.i, self.o, self.functional = nn.Linear(4, 6), nn.Linear(6, 3), functional

        def forward(self, x):
            energy = lambda x: x.pow(3).sum()  # noqa: E731
            if self.functional:
                force = torch.func.grad(energy)(x)
            else:
                y = x.detach().requires_grad_()
                (force,) = torch.autograd.grad(energy(y), y)
            return self.o(torch.tanh(self.i(x + force.detach())))

    for functional in (False, True):
        learner = apical.attach(Energy(functional), "dfa", example_input=X)
        assert learner.synapses["o"].feedback is not None
