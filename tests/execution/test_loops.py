"""Training loops: switching modes, other parameters, optimizers, clipping."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.losses import cross_entropy
from execution.common import attach, same
from learning import RULES, gradients, spread
from networks import LinearParts, X, Y, seed

DETERMINISTIC = tuple(rule for rule in RULES if rule != "brsf")


class Gated(nn.Module):
    """A gate that is computed from a hidden activity, but from which nothing goes back."""

    def __init__(self, gate: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.gate = (
            nn.Linear(4, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) if gate else None,
        )

    def forward(self, x: Tensor, g: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.gate is not None:
            with torch.no_grad():
                g = torch.sigmoid(self.gate(h))
        return self.head(torch.tanh(self.b(h) * g))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("rule", DETERMINISTIC)
def test_a_gate_without_a_graph_is_as_good_as_a_constant(rule, shown):
    model, plain = Gated(), Gated(False)
    with torch.no_grad():
        g = torch.sigmoid(model.gate(torch.tanh(model.a(X))))
    shown = shown or apical.rule(rule).direct
    learner = apical.attach(model, rule, example_input=X if shown else None, generator=seed(1))
    apical.attach(plain, rule, example_input=(X, g) if shown else None, generator=seed(1))
    if apical.rule(rule).direct:
        assert learner.synapses["gate.0"].feedback is learner.synapses["gate.2"].feedback is None
    same(gradients(model), gradients(plain, call=lambda x: plain(x, g)), rtol=1e-6, atol=1e-8)
    learner.adapt(X, Y, cross_entropy)
    apical.alignment(learner, X, Y, cross_entropy), apical.audit(learner, X, Y, cross_entropy)


@pytest.mark.filterwarnings("ignore:rule .* has a phase of its own")
@pytest.mark.parametrize("rule", DETERMINISTIC)
def test_switching_between_train_and_eval_does_no_harm(rule):
    """Validation in between, with and without gradients, must not change what training does."""
    steady, switched = LinearParts(), LinearParts()
    attach(steady, rule), attach(switched, rule)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01) for m in (steady, switched)]
    for _ in range(3):
        for model, optimizer in zip((steady, switched), optimizers, strict=True):
            if model is switched:
                model.eval()
                with torch.no_grad():
                    model(X)
                with torch.inference_mode():
                    model(X)
                model(X)
                model.train()
            gradients(model)
            optimizer.step()
    for (name, a), b in zip(steady.state_dict().items(), switched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("rule", RULES)
def test_functional_call_learns_other_parameters(rule):
    model = LinearParts()
    learner = attach(model, rule, shown=True)
    own = gradients(copy.deepcopy(model))
    outside = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "feedback" not in name:
                p.add_(1.0)  # The module's own weights are other ones, and must not be read.
    out = torch.func.functional_call(model, outside, (X,))
    nn.functional.cross_entropy(out, Y).backward()
    got = {name: p.grad for name, p in outside.items() if p.grad is not None}
    same(got, own, rtol=1e-6, atol=1e-8)
    assert all(p.grad is None for p in model.parameters())
    assert apical.learner_of(model) is learner


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.03, foreach=False),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.03, foreach=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.03, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "rmsprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.01, foreach=True),
}


@pytest.mark.parametrize(("optimizer", "rule"), spread(OPTIMIZERS, ["fa", "dfa", "kp", "kp-direct", "usf"]))
def test_optimizers_lower_the_loss(rule, optimizer):
    model = LinearParts()
    learner = attach(model, rule, shown=True)
    moves = OPTIMIZERS[optimizer](model.parameters())
    before = {name: None if s.feedback is None else s.feedback.detach().clone() for name, s in learner.synapses.items()}
    losses = []
    for _ in range(40):
        moves.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        moves.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    moved = {n for n, s in learner.synapses.items() if before[n] is not None and not torch.equal(before[n], s.feedback)}
    if rule in ("fa", "dfa"):
        assert moved == set()
    elif rule in ("kp", "kp-direct"):
        assert moved == {"second.0", "third.0", "head"}


@pytest.mark.parametrize("optimizer", ["sgd", "sgd foreach", "sgd fused", "nesterov"])
def test_the_kolen_pollack_law_holds_in_every_variant_of_the_optimizer(optimizer):
    """W - B obeys the optimizer's own linear law with no gradient in it, whatever was learned."""
    model = LinearParts(dtype=torch.float64)
    learner = attach(model, "kp", X.double(), shown=True)
    moves = OPTIMIZERS[optimizer](model.parameters())
    synapse = learner.synapses["third.0"]
    ghost = nn.Parameter((synapse.weight - synapse.feedback).detach().clone())
    alone = OPTIMIZERS[optimizer]([ghost])
    start = ghost.detach().clone()
    for _ in range(20):
        gradients(model, X.double())
        moves.step()
        ghost.grad = torch.zeros_like(ghost)
        alone.step()
        torch.testing.assert_close((synapse.weight - synapse.feedback).detach(), ghost.detach(), rtol=1e-9, atol=1e-12)
    if optimizer != "nesterov":
        assert float(ghost.detach().norm()) < 0.95 * float(start.norm())


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_gradient_clipping_and_anomaly_mode_run():
    for rule in RULES:
        model = LinearParts()
        attach(model, rule)
        with torch.autograd.detect_anomaly(check_nan=True):
            out = nn.functional.cross_entropy(model(X), Y)
        out.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        assert float(norm) > 1e-3
        total = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
        assert total <= 1.01e-6
