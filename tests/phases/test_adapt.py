"""What `adapt` makes of unusual models, batches and precisions."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping

import pytest
import torch
from torch import nn

import apical
from apical.losses import cross_entropy
from apical.noise import Supply
from networks import exactly


class Recurrent(nn.Module):
    """One layer that sees the data first, then hidden activity; once without a graph, as a target network would."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        with torch.no_grad():
            still = self.inner(h)
        h = torch.tanh(self.inner(h) + 0.1 * still)
        return self.head(torch.tanh(self.inner(h)))


def test_reinforce_pairs_noise_with_the_call_it_was_put_on(monkeypatch):
    """With exact estimates it is backpropagation."""
    monkeypatch.setattr("apical.phases.phase.estimates", exactly)
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    plain, net = Recurrent(), Recurrent()
    learner = apical.attach(net, "reinforce", example_input=x)
    cross_entropy(net(x), y).mean().backward()
    learner.adapt(x, y, cross_entropy)
    cross_entropy(plain(x), y).mean().backward()
    for own, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shown", [True, False])
def test_reinforce_puts_no_noise_where_nothing_learns_from_it(shown, monkeypatch):
    """Neither on the data, nor behind frozen layers: it would only make the estimates worse."""
    drawn = []
    take = Supply.take
    monkeypatch.setattr(Supply, "take", lambda self, shape: drawn.append(shape[1]) or take(self, shape))
    net = nn.Sequential(
        nn.Linear(11, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)
    )
    net[0].requires_grad_(False)
    x, y = torch.randn(4, 11), torch.randint(3, (4,))
    learner = apical.attach(net, "reinforce", example_input=x if shown else None)
    for _ in range(2):
        cross_entropy(net(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)
    assert drawn == [6, 7] * 2


@pytest.mark.parametrize("below", ["kp", "np", "sg"])
def test_feedback_below_a_cut_learns_from_the_errors_that_reinforce_sends_there(below, monkeypatch):
    monkeypatch.setattr("apical.phases.phase.estimates", exactly)
    torch.manual_seed(0)
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    net = nn.Sequential(*[m for _ in range(3) for m in (nn.Linear(4, 4), nn.Tanh())], nn.Linear(4, 3)).double()
    learner = apical.attach(net, {"": below, "4": "reinforce"}, example_input=x)
    start = learner.synapses["2"].feedback.clone()
    cross_entropy(net(x), y).mean().backward()
    learner.adapt(x, y, cross_entropy)
    if below == "kp":
        assert torch.allclose(learner.synapses["2"]._parameters["feedback"].grad, net[2].weight.grad, rtol=1e-12)
    else:
        assert not torch.equal(learner.synapses["2"].feedback, start)


def half(rule: str, c: float | None = None) -> tuple[nn.Module, apical.Learner, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 5))
    x, y = torch.randn(64, 20), torch.randint(5, (64,))
    chosen = apical.rule(rule) if c is None else apical.rule(rule, noise=c)
    return net, apical.attach(net, chosen, example_input=x, generator=torch.Generator().manual_seed(1)), x, y


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "sg-direct", "wm", "reinforce"])
def test_a_phase_computes_in_full_precision_whatever_the_loss_is_scaled_with(rule, within):
    """Float16, with the scale that GradScaler starts with: squares of such signals overflow."""
    net, learner, x, y = half(rule)
    before = {name: s.feedback.clone() for name, s in learner.synapses.items() if s.feedback is not None}
    with torch.autocast("cpu", torch.float16):
        (cross_entropy(net(x), y).mean() * 2.0**16).backward()
        if within:
            learner.adapt(x, y, cross_entropy)
    if not within:
        learner.adapt(x, y, cross_entropy)
    for name, feedback in before.items():
        assert learner.synapses[name].feedback.isfinite().all()
        assert not torch.equal(learner.synapses[name].feedback, feedback)
    assert net[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("rule", ["np", "reinforce"])
def test_clean_and_noisy_losses_have_one_precision_wherever_adapt_is_called(rule):
    found = []
    for within in (True, False):
        net, learner, x, y = half(rule)
        with torch.autocast("cpu", torch.bfloat16):
            cross_entropy(net(x), y).mean().backward()
            if within:
                learner.adapt(x, y, cross_entropy)
        if not within:
            learner.adapt(x, y, cross_entropy)
        found.append(net[0].weight.grad if rule == "reinforce" else learner.synapses["2"].feedback)
    assert torch.equal(*found)


@pytest.mark.parametrize("rule", ["wm", apical.Rule("direct", "mirror"), "np", "np-direct", "sg", "reinforce"])
def test_inputs_of_lower_precision_pass_under_the_autocast_of_the_loop(rule):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    learner = apical.attach(net, rule, example_input=torch.randn(2, 4))
    x, y = torch.randn(8, 4, dtype=torch.bfloat16), torch.randint(3, (8,))
    start = None if rule == "reinforce" else learner.synapses["2"].feedback.clone()
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(net(x), y).mean().backward()
    learner.adapt(x, y, cross_entropy)
    learner.adapt(torch.randn_like(x), y, cross_entropy) if rule != "reinforce" else None
    assert start is None or not torch.equal(learner.synapses["2"].feedback, start)


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "sg-direct", "reinforce"])
@pytest.mark.parametrize("how", ["loss", "scale"])
def test_nothing_is_learned_from_what_is_not_finite(rule, how):
    net, learner, x, y = half(rule)
    before = {name: s.feedback.clone() for name, s in learner.synapses.items() if s.feedback is not None}
    if how == "loss":
        x[0, 0] = torch.nan
    (cross_entropy(net(x), y).mean() * (1e39 if how == "scale" else 1)).backward()
    learner.adapt(x, y, cross_entropy)
    for name, feedback in before.items():
        assert torch.equal(learner.synapses[name].feedback, feedback)


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "reinforce"])
def test_a_hook_that_changes_the_models_input_is_applied_once(rule):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    net.register_forward_pre_hook(lambda module, args: (args[0] * 3 + 1,))
    learner = apical.attach(net, rule, example_input=x)
    for _ in range(2):
        cross_entropy(net(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)


@pytest.mark.parametrize("rule", ["wm", "np", "np-direct", apical.Rule("direct", "mirror"), "sg", "reinforce"])
@pytest.mark.parametrize("kind", ["UserDict", "nested", "scalar first"])
def test_inputs_in_containers(rule, kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))

        def forward(self, a, b):
            return self.net(a[0] + a[1] if isinstance(a, tuple) else a * b)

    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    model, given = {
        "UserDict": (Model(), UserDict(a=x, b=torch.ones(8, 1))),
        "nested": (Model(), ((x, x), 2)),
        "scalar first": (Model(), {"b": torch.tensor(2.0), "a": x}),
    }[kind]
    learner = apical.attach(model, rule, example_input=given)
    for _ in range(2):
        output = model(**given) if isinstance(given, Mapping) else model(*given)
        cross_entropy(output, y).mean().backward()
        learner.adapt(given, y, cross_entropy)
    assert learner.adapted == 2


def test_a_first_call_of_adapt_shows_which_layer_sees_the_data():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for rule in ("sg", "np"):
        learner = apical.attach(net, rule)
        start = learner.synapses["2"].feedback.clone()
        learner.adapt(x, y, cross_entropy)
        assert not torch.equal(learner.synapses["2"].feedback, start)
        learner.detach()


def test_a_pass_that_reaches_no_layer_of_a_phase_teaches_it_nothing():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aux, self.head = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            h = torch.tanh(self.body(x))
            return self.head(h) + self.aux(h) if self.training else self.head(h)

    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for rule in ("sg", "np", "wm"):
        model = Auxiliary()
        learner = apical.attach(model, {"": "fa", "aux": rule})
        model.eval()
        start = learner.synapses["aux"].feedback.clone()
        cross_entropy(model(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)
        assert torch.equal(learner.synapses["aux"].feedback, start)


@pytest.mark.parametrize("rule", ["wm", "np", "np-direct", "sg", "reinforce", apical.Rule("direct", "mirror")])
def test_a_phase_leaves_no_trace_in_buffers_of_containers(rule):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
            self.register_buffer("passes", torch.tensor(0))

        def forward(self, x):
            self.passes += 1
            return self.net(x)

    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    model = Counting()
    learner = apical.attach(model, rule, example_input=x)
    start = int(model.passes)
    for _ in range(3):
        cross_entropy(model(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)
    assert int(model.passes) - start == 3


def test_a_detached_learner_has_no_phase():
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for rule in ("wm", "np", "sg", "reinforce", {"": "fa", "2": "wm"}):
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        learner = apical.attach(net, rule)
        learner.detach()
        with pytest.raises(ValueError, match=r"learner is detached.*apical\.attach"):
            learner.adapt(x, y, cross_entropy)
        assert learner.adapted == 0
