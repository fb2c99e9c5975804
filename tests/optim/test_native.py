"""LocalSGD by the synapses' node in C++ moves weights as by Python's, to the bit."""

import gc
import math
import threading
import weakref

import pytest
import torch
from torch import nn

import apical
from apical.optim.updates import Updates
from synapses import common
from synapses.common import convolutional, dense, native, steps

RULES = ("bp", "fa", "kp", "usf", "dfa")


@pytest.fixture(autouse=True)
def built():
    """The library, used in this test."""
    yield from common.built()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.0, "half": torch.bfloat16},
    ],
)
@pytest.mark.parametrize(("network", "shape"), [(dense, (32, 70)), (dense, (2, 3, 70)), (convolutional, (4, 2, 8, 8))])
def test_what_is_learned_in_the_backward_pass_is_equal_to_the_bit(network, shape, options, rule):
    if rule == "dfa" and len(shape) == 3:
        pytest.skip("a direct signal is one for each sample")
    x = torch.randn(shape)
    found = (steps(network, x, rule, mode, local=True, **options) for mode in ("on", "off"))
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)


def counting(monkeypatch, name):
    """Calls of one of the optimizer's methods, as they come."""
    calls, method = [], getattr(Updates, name)

    def counted(self, synapse, *arguments):
        calls.append(synapse.label)
        return method(self, synapse, *arguments)

    monkeypatch.setattr(Updates, name, counted)
    return calls


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("network", [dense, convolutional])
def test_plain_steps_are_made_by_it_and_others_handed_over(rule, network, monkeypatch):
    moved, taken = counting(monkeypatch, "moved"), counting(monkeypatch, "take")
    model, x = network(), torch.randn(8, 70) if network is dense else torch.randn(4, 2, 8, 8)
    learner = apical.attach(model, rule, example_input=x)
    layers = sorted(learner.synapses)

    def step():
        moved.clear()
        taken.clear()
        model(x).sum().backward()
        optimizer.step()
        return sorted(moved), sorted(taken)

    optimizer = apical.LocalSGD(learner, 0.1)
    assert step() == (layers, [])
    for group in optimizer.param_groups:
        group["momentum"] = 0.9
    assert step() == ([], layers)
    for group in optimizer.param_groups:
        group["momentum"] = 0.0
    # Weights and feedback that have moved by one velocity part first.
    assert step() == ((layers[:1], layers[1:]) if rule == "kp" else (layers, []))


def test_rates_are_those_of_the_groups_and_what_no_group_has_stands_still():
    found = []
    for mode in ("on", "off"):
        with native(mode):
            torch.manual_seed(0)
            model, x = dense(), torch.ones(8, 70)
            learner = apical.attach(model, "kp", example_input=x)
            groups = [
                {"params": [model[0].weight, model[0].bias], "lr": 0.3},
                {"params": [model[2].weight, model[4].weight, *learner.feedback_parameters()]},
            ]
            optimizer = apical.LocalSGD(learner, 0.1, params=groups)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            before = model[4].bias.detach().clone()
            for _ in range(2):
                model(x).square().mean().backward()
                assert torch.equal(model[4].bias, before)
                assert model[4].bias.grad is not None
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                model.zero_grad()
            found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_two_calls_are_one_update():
    found = []
    for mode in ("on", "off"):
        with native(mode):
            torch.manual_seed(0)
            model, x = nn.Sequential(nn.Linear(6, 6), shared := nn.Linear(6, 6), nn.Tanh(), shared), torch.ones(4, 6)
            optimizer = apical.LocalSGD(apical.attach(model, "fa", example_input=x), 0.1)
            for _ in range(2):
                model(x).square().mean().backward()
                optimizer.step()
            found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_second_backward_pass_is_refused_and_pythons_failures_keep_their_kind(monkeypatch):
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "fa", example_input=x)
    optimizer = apical.LocalSGD(learner, 0.1)
    out = model(x)
    out.sum().backward(retain_graph=True)
    moved = model[4].weight.detach().clone()
    with pytest.raises(RuntimeError, match="'4' got a second backward pass before step"):
        out.sum().backward()
    assert torch.equal(model[4].weight, moved)
    optimizer.step()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Updates, "begin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model(x).sum().backward()


def test_a_gradient_besides_its_update_is_refused():
    for name in ("weight", "bias"):
        model, x = dense(), torch.randn(8, 70)
        optimizer = apical.LocalSGD(apical.attach(model, "fa", example_input=x), 0.1)
        (model(x).sum() + getattr(model[0], name).square().sum()).backward()
        with pytest.raises(RuntimeError, match="'0' got a gradient besides"):
            optimizer.step()


def test_its_nodes_know_their_synapse():
    model, x = dense(), torch.randn(8, 70)
    learner = apical.attach(model, "fa", example_input=x)
    node = model(x).grad_fn
    assert node.name() == "Learn"
    assert node.synapse is learner.synapses["4"]
    assert node.next_functions[0][0].next_functions[0][0].synapse is learner.synapses["2"]
    seen = []
    node.register_hook(lambda signals, errors: seen.append(len(errors)))
    model(x).sum().backward()
    assert not seen
    del model, learner
    gc.collect()
    assert node.synapse is None


def test_a_pass_under_local_sgd_keeps_no_model_once_its_graph_is_gone():
    model, x = dense(), torch.randn(8, 70)
    optimizer = apical.LocalSGD(apical.attach(model, "dfa", example_input=x), 0.1)
    out, gone = model(x), weakref.ref(model)
    out.sum().backward()
    del model, optimizer, out
    gc.collect()
    assert gone() is None


def test_models_learn_in_threads_side_by_side():
    def learn(seed):
        torch.manual_seed(seed)
        model, x = dense(), torch.randn(16, 70)
        optimizer = apical.LocalSGD(apical.attach(model, "kp", example_input=x), 0.05)
        for _ in range(50):
            model(x).square().mean().backward()
            optimizer.step()
        found.append(float(model(x).detach().square().mean()))

    found = []
    threads = [threading.Thread(target=learn, args=(0,), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3
    assert all(math.isfinite(loss) for loss in found)
