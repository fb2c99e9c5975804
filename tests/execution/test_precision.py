"""Autocast, precisions and memory formats."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from execution.common import IMAGES, attach, same
from learning import RULES, gradients
from networks import ConvolutionParts, LinearParts, X, Y


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["chain", "convolutions"])
def test_autocast_gives_nearly_the_gradients_of_full_precision(kind, rule, inside):
    if kind == "convolutions" and rule == "ifa":
        pytest.skip("needs a chain that keeps shape")
    make, x = (LinearParts, X) if kind == "chain" else (ConvolutionParts, IMAGES)
    full, half = make().eval(), make().eval()
    attach(full, rule, x), attach(half, rule, x)
    expected = gradients(full, x)
    half.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = half(x)
        assert out.dtype == torch.bfloat16
        loss = nn.functional.cross_entropy(out, Y)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    got = {name: p.grad for name, p in half.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, g in expected.items():
        assert got[name].dtype == half.get_parameter(name).dtype == torch.float32
        # Rounding flips some rectifiers of the convolutional net, so there it is the direction that has to agree.
        if kind == "chain":
            assert float((got[name] - g).norm() / (g.norm() + 1e-3)) < 0.05, name
        elif float(g.norm()) > 1e-6:
            assert float(torch.cosine_similarity(got[name].flatten(), g.flatten(), dim=0)) > 0.95, name
            assert 0.8 < float(got[name].norm() / g.norm()) < 1.25, name
        assert name.startswith("head.bias") or not torch.equal(got[name], g) or not g.any(), "computed in float32"


@pytest.mark.parametrize("rule", RULES)
def test_autocast_computes_what_plain_autocast_does(rule):
    plain, model = ConvolutionParts().eval(), ConvolutionParts().eval()
    if rule == "ifa":
        plain, model = LinearParts(), LinearParts()
    x = X if rule == "ifa" else IMAGES
    attach(model, rule, x)
    for _ in range(2):  # The second pass meets autocast's cache of weight casts, if any.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(x), plain(x))
            with torch.no_grad():
                assert torch.equal(model(x), plain(x))
            assert model(x).requires_grad


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("make", [LinearParts, ConvolutionParts])
@pytest.mark.parametrize("rule", ["bp", "fa", "kp"])
def test_autocast_rounds_as_plain_autocast_does_where_feedback_is_the_weights(rule, make, inside):
    x = X if make is LinearParts else IMAGES
    grads = []
    for attached in (False, True):
        model = make().eval()
        if attached:
            for synapse in attach(model, rule, x).synapses.values():
                if rule != "bp":
                    synapse.feedback = synapse.weight.detach().clone()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), Y)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert all(g.dtype == torch.float32 for g in grads[-1].values())
    expected, got = grads
    for name, g in expected.items():
        assert float((got[name] - g).norm()) <= 0.01 * float(g.norm()) + 1e-6, name
        if rule == "kp" and name.endswith("0.weight") and not name.startswith("first"):
            assert torch.equal(got[name.replace("weight", "feedback")], got[name])


def test_weights_that_change_between_passes_of_one_autocast_region_are_seen():
    model = LinearParts()
    attach(model, "fa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            model(X)
            model.head.weight.zero_()
            model.head.bias.zero_()
        assert not model(X).any()


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "kp"])
def test_float64_layers_stay_float64_under_autocast(rule):
    model = LinearParts(dtype=torch.float64)
    attach(model, rule, X.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(X.double())
        assert out.dtype == torch.float64
        out.sum().backward()
    assert model.second[0].weight.grad.dtype == torch.float64


@pytest.mark.parametrize("rule", [r for r in RULES if r != "ifa"])
def test_channels_last_gives_the_same_gradients(rule):
    plain, last = ConvolutionParts().double().eval(), ConvolutionParts().double().eval()
    attach(plain, rule, IMAGES.double()), attach(last, rule, IMAGES.double())
    last.to(memory_format=torch.channels_last)
    expected = gradients(plain, IMAGES.double())
    got = gradients(last, IMAGES.double().to(memory_format=torch.channels_last))
    same(got, expected, rtol=1e-10, atol=1e-13)
    for learner in (apical.learner_of(last),):
        for name, synapse in learner.synapses.items():
            other = apical.learner_of(plain).synapses[name].feedback
            assert (synapse.feedback is None) == (other is None)
            assert other is None or torch.equal(synapse.feedback, other)


@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
def test_channels_last_of_the_input_alone(rule):
    plain, last = ConvolutionParts().double().eval(), ConvolutionParts().double().eval()
    attach(plain, rule, IMAGES.double()), attach(last, rule, IMAGES.double())
    same(
        gradients(last, IMAGES.double().to(memory_format=torch.channels_last)),
        gradients(plain, IMAGES.double()),
        rtol=1e-10,
        atol=1e-13,
    )
