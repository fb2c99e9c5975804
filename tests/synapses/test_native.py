"""The synapse's node in C++ gives what Python's gives, to the bit, and leaves to that what it doesn't do."""

import copy
import gc
import pickle
import subprocess
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy
from apical.synapses import native
from apical.synapses.native import building
from synapses import common
from synapses.common import convolutional, dense, steps

RULES = ("bp", "fa", "kp", "usf", "dfa")


@pytest.fixture(autouse=True)
def built():
    """The library, used in this test."""
    yield from common.built()


class Counted:
    """The library, which counts the nodes that it makes."""

    def __init__(self, monkeypatch, found):
        self.calls = 0
        monkeypatch.setattr(native, "library", lambda: self)
        self.Busy, self.found = found.Busy, found

    def Settings(self, **options):
        made = self.found.Settings(**options)
        outer = self

        class Counting:
            sends_back = True
            within = made.within

            def call(self, *arguments):
                outer.calls += 1
                made.sends_back = self.sends_back
                return made.call(*arguments)

        return Counting()

    def tap(self, *arguments):
        return self.found.tap(*arguments)

    def join(self, *arguments):
        self.calls += 1
        return self.found.join(*arguments)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("network", "shape"), [(dense, (32, 70)), (dense, (2, 3, 70)), (convolutional, (4, 2, 8, 8))])
def test_what_is_learned_is_equal_to_the_bit(network, shape, rule):
    if rule == "dfa" and len(shape) == 3:
        pytest.skip("a direct signal is one for each sample")
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(shape, dtype=dtype)
        for here, there in zip(steps(network, x, rule, "on"), steps(network, x, rule, "off"), strict=True):
            assert torch.equal(here, there)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("network", "shape"), [(dense, (32, 70)), (dense, (2, 3, 70)), (convolutional, (4, 2, 8, 8))])
def test_under_autocast_too(network, shape, rule, half, monkeypatch, built):
    if rule == "dfa" and len(shape) == 3:
        pytest.skip("a direct signal is one for each sample")
    x = torch.randn(shape)
    here, there = steps(network, x, rule, "on", half=half), steps(network, x, rule, "off", half=half)
    for one, other in zip(here, there, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    counted = Counted(monkeypatch, built)
    model = network()
    apical.attach(model, rule, example_input=x)
    counted.calls = 0
    with torch.autocast("cpu", half):
        model(x).sum().backward()
    assert counted.calls >= 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 600), st.integers(1, 900), st.integers(1, 100), st.booleans())
def test_products_are_those_of_python_in_every_shape(inputs, outputs, rows, biased):
    layer = nn.Linear(inputs, outputs, bias=biased)
    apical.attach(layer, apical.rule("kp", track=True))
    x, delta = torch.randn(rows, inputs, requires_grad=True), torch.randn(rows, outputs)
    for synapse in (layer, copy.deepcopy(layer)):
        synapse.native = None if synapse is layer else False
        synapse(x).backward(delta)
    other = synapse
    for one, two in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("rule", RULES)
def test_an_ordinary_step_is_made_by_it(rule, monkeypatch, built):
    counted = Counted(monkeypatch, built)
    model, x = dense(), torch.randn(8, 70)
    apical.attach(model, rule, example_input=x)
    counted.calls = 0
    model(x).sum().backward()
    assert counted.calls == (4 if rule == "dfa" else 3)


def test_all_other_calls_are_pythons(monkeypatch, built):
    counted = Counted(monkeypatch, built)
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "kp", example_input=x)
    y = torch.randint(10, (8,))
    counted.calls = 0
    apical.audit(learner, x, y, cross_entropy)
    apical.alignment(learner, x, y, cross_entropy)
    torch.func.grad(lambda own: torch.func.functional_call(model, own, x).sum())(dict(model.named_parameters()))
    before = counted.calls
    assert counted.calls == before


class Answers(nn.Module):
    """A network that answers with several tensors, of which one is the loss's."""

    def __init__(self):
        super().__init__()
        self.body, self.head = dense(), nn.Linear(10, 4)

    def forward(self, x):
        hidden = self.body(x)
        return {"hidden": hidden, "logits": self.head(torch.tanh(hidden))}


@pytest.mark.parametrize("frozen", [False, True])
def test_taps_of_which_python_has_some(frozen, monkeypatch, built):
    """A frozen layer's tap is a node of Python's; then all of them are joined there."""
    found = []
    for mode in ("on", "off"):
        with common.native(mode):
            torch.manual_seed(0)
            model, x = Answers(), torch.ones(8, 70)
            apical.attach(model, "dfa", example_input=x, output="logits", generator=torch.Generator().manual_seed(1))
            model.body[2].weight.requires_grad_(not frozen)
            outputs = model(x)
            assert outputs["logits"].grad_fn.name() == (
                "Broadcast" if mode == "on" and not frozen else "_BroadcastBackward"
            )
            outputs["logits"].square().sum().backward()
            found.append({name: p.grad for name, p in model.named_parameters()})
    assert (found[0]["body.2.weight"] is None) == frozen
    assert all(one is found[1][name] is None or torch.equal(one, found[1][name]) for name, one in found[0].items())


def test_a_chain_of_taps_is_pythons():
    x = torch.randn(8, 70)
    for here, there in zip(steps(dense, x, "ifa", "on"), steps(dense, x, "ifa", "off"), strict=True):
        assert torch.equal(here, there)


def test_taps_of_another_shape_are_refused_in_words():
    model, x = dense(), torch.randn(8, 70)
    apical.attach(model, "dfa", example_input=x)
    model.append(nn.Unflatten(0, (2, 4)))
    model.append(nn.Flatten(1))
    with pytest.raises(RuntimeError, match="activity at '2' has 8 rows but the output has 2"):
        model(x)
    y = torch.randn(3, 50, requires_grad=True)
    with pytest.raises(RuntimeError, match="'2' was called on its own"):
        model[2](y)


def test_a_graph_goes_back_through_its_taps_once():
    model, x = dense(), torch.randn(8, 70)
    apical.attach(model, "dfa", example_input=x)
    loss = model(x).sum()
    loss.backward(retain_graph=True)
    first = model[0].weight.grad.clone()
    loss.backward()
    assert torch.equal(model[0].weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    changed = model(x)
    with torch.no_grad():
        model[4]._buffers["feedback"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed.sum().backward()


def test_only_what_is_asked_for_is_made_and_a_second_derivative_is_refused():
    model, x = dense(), torch.randn(8, 70, requires_grad=True)
    apical.attach(model, "fa", example_input=x)
    (signal,) = torch.autograd.grad(model(x).sum(), x)
    assert signal.shape == x.shape
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="create_graph=True asks for the gradient of an update"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


def test_frozen_layers_and_layers_below_data():
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "kp", example_input=x)
    model[2].weight.requires_grad_(False)
    model(x).sum().backward()
    assert model[2].weight.grad is None
    assert learner.synapses["2"].feedback.grad is None
    assert model[0].weight.grad is not None


def test_copies_and_files_find_their_own():
    model, x = dense(), torch.randn(8, 70)
    apical.attach(model, "kp", example_input=x)
    model(x).sum().backward()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].native is None
        other.zero_grad()
        other(x).sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_another_rule_another_node():
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "fa", example_input=x)
    model(x).sum().backward()
    held = learner.synapses["2"].native
    learner.synapses["2"].plasticity = learner.synapses["2"].plasticity
    assert held
    assert learner.synapses["2"].native is None


def test_a_backward_pass_while_another_thread_measures_is_refused():
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "fa", example_input=x)
    loss, found = model(x).sum(), []

    def measure():
        with learner.phases.unheard():
            entered.set()
            over.wait(10)

    entered, over = threading.Event(), threading.Event()
    other = threading.Thread(target=measure)
    other.start()
    entered.wait(10)
    try:
        with pytest.raises(RuntimeError, match="the backward pass came to '4' while another thread"):
            loss.backward()
    finally:
        over.set()
        other.join()
    assert not found


def test_a_graph_that_outlives_its_model_and_saved_tensors_that_were_changed():
    model, x = dense(), torch.randn(8, 70)
    apical.attach(model, "fa", example_input=x)
    loss = model(x).sum()
    del model
    loss.backward()
    layer = nn.Linear(4, 3)
    apical.attach(layer, apical.rule("fa", track=True))
    x = torch.randn(5, 4, requires_grad=True)
    hidden = F.relu(x)
    y = layer(hidden)
    hidden.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_without_a_compiler_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("APICAL_CACHE", str(tmp_path))
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    with pytest.raises(building.BuildError, match="no C\\+\\+ compiler was found"):
        building.build()
    monkeypatch.setattr(building.shutil, "which", lambda name: "c++")
    told = subprocess.CompletedProcess([], 1, "", "node.cpp:1: fatal error: ATen/ATen.h: No such file\n")
    monkeypatch.setattr(building.subprocess, "run", lambda *_, **__: told)
    with pytest.raises(building.BuildError, match=r"can't build the synapses' node: .*ATen\.h: No such file"):
        building.build()
    assert not list(tmp_path.rglob("*.so"))


def phased(network, x, rule, mode, half, local):
    """What some steps with a phase have left, with the node in C++ or without."""

    def criterion(outputs, targets):
        return F.cross_entropy(outputs, targets, reduction="none")

    with common.native(mode):
        torch.manual_seed(1)
        model, y = network(), torch.arange(len(x)) % 3
        learner = apical.attach(model, rule, example_input=x, generator=torch.Generator().manual_seed(2))
        optimizer = apical.LocalSGD(learner, 0.01) if local else torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", half, enabled=half is not None):
                losses = criterion(model(x), y)
            losses.mean().backward()
            learner.adapt(x, y, criterion)
            optimizer.step()
    return list(model.state_dict().values())


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
@pytest.mark.parametrize("rule", ["np", "sg", "wm", "np-direct", "reinforce"])
@pytest.mark.parametrize(("network", "shape"), [(dense, (32, 70)), (convolutional, (4, 2, 8, 8))])
def test_phases_hear_of_its_calls(network, shape, rule, half, local, monkeypatch, built):
    x = torch.randn(shape)
    found = (phased(network, x, rule, mode, half, local) for mode in ("on", "off"))
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)
    counted = Counted(monkeypatch, built)
    model = network()
    apical.attach(model, rule, example_input=x)
    counted.calls = 0
    model(x).sum().backward()
    assert counted.calls >= 3


def test_a_graph_that_tells_a_phase_is_freed():
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "np", example_input=x)
    gc.disable()
    try:
        output = model(x)
        node, held = output.grad_fn, weakref.ref(output)
        output.sum().backward()
        call = next(iter(learner.phases.recorder.newest.calls.values()))
        assert call.delta is not None
        del output, node, call
        assert held() is None
    finally:
        gc.enable()
