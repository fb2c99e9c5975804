"""Layers used twice, frozen or thawed, and passes that are open at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import apical
from learning import RULES, TRAINED, WIRED, attach, gradients, spread
from networks import X, Y, chain, seed


class Twice(nn.Module):
    """One module used twice: first on data, then on what it gave."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "usf", "dfa", "kp-direct", "frsf"])
def test_a_module_used_twice_sums_both_uses(rule, shown):
    x = torch.randn(8, 5, dtype=torch.float64)
    model = Twice().double()
    learner = apical.attach(
        model, rule, example_input=x if shown or apical.rule(rule).direct else None, generator=seed()
    )
    for _ in range(2):  # The second time with whatever the first has decided.
        got = gradients(model, x)
        W, b, V = (t.detach() for t in (model.shared.weight, model.shared.bias, model.head.weight))
        B, C = learner.synapses["shared"].feedback, learner.synapses["head"].feedback
        B, C = B.detach(), C.detach()
        h1 = torch.tanh(x @ W.T + b)
        h2 = torch.tanh(h1 @ W.T + b)
        e = torch.softmax(h2 @ V.T + model.head.bias.detach(), 1)
        e[range(8), Y] -= 1
        e /= 8
        d2 = (e @ C) * (1 - h2**2)
        d1 = ((e @ B) if rule in WIRED else (d2 @ B)) * (1 - h1**2)
        expected = d1.T @ x + d2.T @ h1
        torch.testing.assert_close(got["shared.weight"], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got["shared.bias"], d1.sum(0) + d2.sum(0), rtol=1e-10, atol=1e-12)
        if rule == "kp":
            torch.testing.assert_close(got["shared.feedback"], expected, rtol=1e-10, atol=1e-12)
        if rule == "kp-direct":
            torch.testing.assert_close(got["shared.feedback"], e.T @ h1, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rule", RULES)
def test_frozen_layers_get_nothing_and_those_below_them_learn_as_before(rule, when):
    whole, model = chain().eval(), chain().eval()
    attach(whole, rule)
    if when == "before":
        model[4].requires_grad_(False)
    attach(model, rule)
    if when == "after":
        model[4].requires_grad_(False)
    expected, got = gradients(whole), gradients(model)
    assert "4.weight" not in got
    assert "4.bias" not in got
    assert "4.feedback" not in got  # Feedback follows the weights: it stands still where they are frozen.
    got.pop("0.feedback", None)  # Among frozen parameters the first pass decides nothing, so this one is still there.
    for name in got:
        assert torch.equal(got[name], expected[name]), name
    assert ("0.weight" in got) == (rule not in ("shallow", "reinforce"))


def test_indirect_feedback_enters_where_something_else_that_learns_stands_in_front():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.LayerNorm(4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    x = X.double()
    learner = attach(model, "ifa", x)
    got = gradients(model, x)
    D = learner.synapses["1"].feedback
    assert [learner.synapses[name].feedback is None for name in ("1", "3", "5")] == [False, True, True]
    with torch.no_grad():
        h = [model[0](x)]
        h += [torch.tanh(model[1](h[0]))]
        h += [torch.tanh(model[3](h[1]))]
        e = torch.softmax(model[5](h[2]), 1) - nn.functional.one_hot(Y, 3)
        e = e / len(e)
        entering = e @ D
        first = (entering @ model[1].weight.T) * (1 - h[1] ** 2)
        second = (first @ model[3].weight.T) * (1 - h[2] ** 2)
        plain = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + model[0].eps).sqrt()
    expected = {
        "0.weight": (entering * plain).sum(0),
        "0.bias": entering.sum(0),
        "1.weight": first.T @ h[0],
        "3.weight": second.T @ h[1],
        "5.weight": e.T @ h[2],
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("rule", "frozen"), spread([r for r in RULES if r != "brsf"], [[1], [2], [3], [1, 2], [2, 3]]))
def test_a_frozen_layer_in_the_middle_changes_nothing_for_the_others(rule, frozen):
    """Signals that run forward (ifa) have to cross it as well: its input needs no gradient then, nor does its output."""

    def deep() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [m for _ in range(5) for m in (nn.Linear(6, 6), nn.Tanh())]
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), *layers, nn.Linear(6, 3)).double()

    whole, model = deep(), deep()
    attach(whole, rule, X.double()), attach(model, rule, X.double())
    whole(X.double())  # Whatever the first pass decides is decided before anything is frozen.
    model(X.double())
    indices = [2 * i for i in frozen]
    for i in indices:
        model[i].requires_grad_(False)
    expected, got = gradients(whole, X.double()), gradients(model, X.double())
    # Direct feedback stands still where no signal enters, as at the input of what follows a frozen layer.
    unused = {f"{i + 2}.feedback" for i in indices} if rule == "kp-direct" else set()
    assert got.keys() == {name for name in expected if int(name.split(".")[0]) not in indices} - unused
    for name, g in got.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-10, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", [r for r in RULES if r != "brsf"])
def test_layers_thawed_later_learn_as_if_they_had_never_been_frozen(rule):
    """nokland2016 fig. 2 freezes the first layer and lets it go later; so does every fine-tuning schedule."""
    whole, model = chain().eval(), chain().eval()
    attach(whole, rule)
    model[:5].requires_grad_(False)
    attach(model, rule)
    gradients(whole), gradients(model)
    model.requires_grad_(True)
    expected, got = gradients(whole), gradients(model)
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("rule", TRAINED)
def test_feedback_of_a_frozen_layer_stands_still_and_thaws_with_it(rule):
    model = chain().eval()
    model[4].weight.requires_grad_(False)
    learner = attach(model, rule)
    assert "4.feedback" not in gradients(model)
    model[4].requires_grad_(True)
    got = gradients(model)
    assert "4.feedback" in got
    if rule != "kp-direct":
        assert torch.equal(got["4.feedback"], got["4.weight"])
    assert learner.synapses["4"].feedback.requires_grad


def test_everything_frozen_computes_and_nothing_learns():
    for rule in RULES:
        model = chain().eval().requires_grad_(False)
        attach(model, rule)
        out = model(X)
        assert not out.requires_grad or rule in TRAINED or rule == "ifa"  # Its chain holds through frozen synapses.
        assert torch.equal(out, chain().eval()(X))
        assert not any(p.requires_grad for n, p in model.named_parameters() if not n.endswith("feedback"))


@pytest.mark.parametrize("rule", [r for r in RULES if r != "brsf"])
def test_gradient_accumulation_is_the_sum(rule):
    model = chain(dtype=torch.float64).eval()
    attach(model, rule, X.double())
    parts = [gradients(model, X[i : i + 2].double(), Y[i : i + 2]) for i in range(0, 8, 2)]
    model.zero_grad()
    for i in range(0, 8, 2):
        nn.functional.cross_entropy(model(X[i : i + 2].double()), Y[i : i + 2]).backward()
    mean = gradients_now = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, g in gradients_now.items():
        torch.testing.assert_close(g, sum(part[name] for part in parts), rtol=1e-12, atol=1e-14)
    whole = gradients(model, X.double(), Y)
    for name, g in whole.items():
        torch.testing.assert_close(mean[name] / 4, g, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", [r for r in RULES if r != "brsf"])
def test_two_passes_open_at_once_do_not_mix(rule):
    """A siamese loss: both forwards before the one backward; then the first backward while a third pass is open."""
    model = chain(dtype=torch.float64).eval()
    attach(model, rule, X.double())
    a, b = X[:5].double(), X[5:].double()
    one, two = gradients(model, a, Y[:5]), gradients(model, b, Y[5:])
    model.zero_grad()
    first, second = model(a), model(b)
    (nn.functional.cross_entropy(second, Y[5:]) + nn.functional.cross_entropy(first, Y[:5])).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, one[name] + two[name], rtol=1e-12, atol=1e-14)
    model.zero_grad()
    first, second = model(a), model(b)
    nn.functional.cross_entropy(first, Y[:5]).backward()
    for name, g in one.items():
        torch.testing.assert_close(model.get_parameter(name).grad, g, rtol=1e-12, atol=1e-14)


def test_batchwise_magnitudes_of_a_pass_are_used_by_its_own_backward():
    """Two passes open at once (a siamese loss), or a pass for a look in between: each goes back as it was drawn."""
    model = chain(dtype=torch.float64).eval()
    learner = attach(model, "brsf", X.double())
    model(X.double()).sum().backward()
    first = model(X.double())
    drawn_for_first = [s.feedback.clone() for name, s in learner.synapses.items() if name != "0"]
    model(X.double())
    model.zero_grad()
    nn.functional.cross_entropy(first, Y).backward()
    # The same by hand, for the synapse in the middle.
    e = torch.softmax(first.detach(), 1)
    e[range(8), Y] -= 1
    with torch.no_grad():
        below = model[:4](X.double())
        h = torch.tanh(model[4](below))
    delta = e / 8 @ drawn_for_first[1] * (1 - h**2)
    torch.testing.assert_close(model[4].weight.grad, delta.T @ below, rtol=1e-10, atol=1e-12)
