"""Weights of an embedding that are the head's too: feedback that follows them gets the embedding's increments as well."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import apical
from learning import attach
from networks import Words, dynamo, tied_words

WORDS = torch.tensor([1, 2, 2, 5, 0, 8, 5])
NEXT = torch.tensor([2, 2, 5, 0, 8, 5, 1])


def learn(model, optimizer, steps=6, call=None, words=WORDS, targets=NEXT):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy((model if call is None else call)(words), targets).backward()
        optimizer.step()


def gap(model):
    return (model.head.weight - model.head.feedback).detach()


def follows(model, optimizer=None, **options):
    """Train by SGD; W - B is as it was, while W is not."""
    before, weight = gap(model), model.head.weight.detach().clone()
    learn(model, torch.optim.SGD(model.parameters(), 0.1) if optimizer is None else optimizer, **options)
    assert (model.head.weight - weight).norm() > 0.05
    torch.testing.assert_close(gap(model), before, rtol=0, atol=1e-12)


def in_numpy(model, steps, lr, momentum, decay):
    """Kolen and Pollack's rule for `Words` with a tied head, from its equations."""
    W, V, b = (p.detach().numpy().copy() for p in (model.words.weight, model.hidden.weight, model.hidden.bias))
    B, C = (layer.feedback.detach().numpy().copy() for layer in (model.head, model.hidden))
    learned = [W, V, b, B, C]
    velocities = [0 * p for p in learned]
    words, classes = WORDS.numpy(), np.eye(9)[NEXT.numpy()]
    for _ in range(steps):
        x = W[words]
        h = np.tanh(x @ V.T + b)
        y = np.exp(h @ W.T)
        e = (y / y.sum(1, keepdims=True) - classes) / len(words)
        d = (e @ B) * (1 - h**2)
        looked_up = np.zeros_like(W)
        np.add.at(looked_up, words, d @ C)
        both = e.T @ h + looked_up
        for p, v, g in zip(learned, velocities, (both, d.T @ x, d.sum(0), both, d.T @ x), strict=True):
            v *= momentum
            v += g + decay * p
            p -= lr * v
    return dict(zip(("W", "V", "b", "B", "C"), learned, strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, apical.LocalSGD])
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.1), (0.9, 0.1)])
def test_a_tied_language_model_learns_as_in_numpy(momentum, decay, shown, optimizer):
    model = tied_words()
    learner = apical.attach(model, "kp", example_input=WORDS if shown else None)
    expected = in_numpy(model, 8, 0.2, momentum, decay)
    before = gap(model)
    options = {"lr": 0.2, "momentum": momentum, "weight_decay": decay}
    moves = (
        apical.LocalSGD(learner, **options)
        if optimizer is apical.LocalSGD
        else optimizer(model.parameters(), **options)
    )
    learn(model, moves, steps=8)
    got = {
        "W": model.words.weight, "V": model.hidden.weight, "b": model.hidden.bias,
        "B": model.head.feedback, "C": model.hidden.feedback,
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].detach().numpy(), value, rtol=1e-9, atol=1e-11, err_msg=name)
    if not momentum:
        torch.testing.assert_close(gap(model), (1 - 0.2 * decay) ** 8 * before, rtol=1e-9, atol=1e-12)


class Scaled(nn.Embedding):
    """As that of BART and Gemma."""

    def forward(self, input):
        return 3 * super().forward(input)


class Mean(nn.EmbeddingBag):
    def forward(self, input):
        return super().forward(input[:, None].expand(-1, 2))


EMBEDDINGS = {
    "padded": lambda: nn.Embedding(9, 6, padding_idx=2),
    "by frequency": lambda: nn.Embedding(9, 6, scale_grad_by_freq=True),
    "sparse": lambda: nn.Embedding(9, 6, sparse=True),
    "scaled": lambda: Scaled(9, 6),
    "bag": lambda: Mean(9, 6),
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_every_kind_of_embedding(kind):
    model = tied_words(EMBEDDINGS[kind]())
    apical.attach(model, "kp", example_input=WORDS)
    follows(model)


def test_several_embeddings_and_a_part_of_the_increments():
    class Pair(Words):
        def __init__(self):
            super().__init__()
            self.others = Scaled(9, 6)
            self.others.weight = self.head.weight = self.words.weight

        def forward(self, word):
            return self.head(self.hidden(self.words(word) + self.others(word.flip(0))).tanh())

    model = Pair().double()
    apical.attach(model, apical.rule("urfb", epsilon=0.5))
    before = [p.detach().clone() for p in (model.head.weight, model.head.feedback)]
    learn(model, torch.optim.SGD(model.parameters(), 0.1))
    moved = [p.detach() - old for p, old in zip((model.head.weight, model.head.feedback), before, strict=True)]
    torch.testing.assert_close(moved[1], 0.5 * moved[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", ["bp", "fa", "usf", "dfa"])
def test_other_rules_put_no_hooks_on_embeddings(rule):
    model = tied_words()
    attach(model, rule, WORDS)
    assert not model.words._forward_hooks


def test_detached_the_embedding_is_as_it_was():
    model, plain = tied_words(), tied_words()
    learner = apical.attach(model, "kp")
    follows(model)
    assert "weight" not in vars(model.words)
    learner.detach()
    assert vars(model.words).keys() == vars(plain.words).keys()
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called"):
        assert not getattr(model.words, hooks)


@pytest.mark.parametrize("way", ["to the embedding", "to the head"])
@pytest.mark.parametrize("refreshed", [True, False])
def test_tied_and_parted_after_attach(way, refreshed):
    model = Words().double()
    learner = apical.attach(model, "kp", example_input=WORDS)
    learn(model, torch.optim.SGD(model.parameters(), 0.1), steps=1)
    model.tie(way)
    if refreshed:
        learner.refresh()
    follows(model)
    model.words.weight = nn.Parameter(model.words.weight.detach().clone())
    follows(model)
    assert not model.words._forward_hooks


def test_frozen_weights_leave_their_feedback_alone():
    model = tied_words()
    apical.attach(model, "kp")
    model.head.weight.requires_grad_(False)
    F.cross_entropy(model(WORDS), NEXT).backward()
    assert model.head.feedback.grad is None
    assert model.hidden.weight.grad is not None


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_follow_weights_of_their_own(twin):
    model = tied_words()
    apical.attach(model, "kp")
    before = gap(model)
    other = twin(model)
    follows(other)
    assert torch.equal(gap(model), before)
    assert model.head.feedback.grad is None
    apical.learner_of(other).detach()
    assert not other.words._forward_hooks


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing(reentrant):
    class Checkpointed(Words):
        def forward(self, word):
            def below(word, _):
                return self.hidden(self.words(word)).tanh()

            return self.head(checkpoint(below, word, torch.zeros(1, requires_grad=True), use_reentrant=reentrant))

    model = Checkpointed()
    model.tie("to the head")
    apical.attach(model.double(), "kp")
    follows(model)


@dynamo
def test_compiled_as_one_graph():
    torch.compiler.reset()
    model = tied_words()
    apical.attach(model, "kp")
    follows(model, call=torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, of tangents.
def test_gradients_per_sample_and_tangents():
    model = tied_words()
    apical.attach(model, "kp")
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, word, target):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (word[None],)), target[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, WORDS, NEXT)
    F.cross_entropy(model(WORDS), NEXT).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each[name].mean(0), p.grad)
    torch.testing.assert_close(model.head.feedback.grad, model.head.weight.grad)
    direction = {name: torch.ones_like(p) for name, p in parameters.items()}
    _, tangent = torch.func.jvp(lambda p: loss(p, WORDS[0], NEXT[0]), (parameters,), (direction,))
    apical.learner_of(model).detach()
    plain = {name: p for name, p in parameters.items() if "feedback" not in name}
    _, expected = torch.func.jvp(lambda p: loss(p, WORDS[0], NEXT[0]), (plain,), ({n: direction[n] for n in plain},))
    torch.testing.assert_close(tangent, expected)


@pytest.mark.filterwarnings("ignore")
def test_exported_in_training_mode():
    model = tied_words()
    apical.attach(model, "kp")
    program = torch.export.export(model, (WORDS,)).module()
    F.cross_entropy(program(WORDS), NEXT).backward()
    F.cross_entropy(model(WORDS), NEXT).backward()
    mine, theirs = (dict(one.named_parameters()) for one in (program, model))
    for name in ("words.weight", "head.feedback"):
        torch.testing.assert_close(mine[name].grad, theirs[name].grad)


def test_an_audit_and_an_alignment_leave_it_following():
    model = tied_words()
    learner = apical.attach(model, "kp", example_input=WORDS)
    criterion = nn.CrossEntropyLoss(reduction="none")
    report = apical.audit(learner, WORDS, NEXT, criterion)
    assert set(report.transported.values()) == {"nothing"}
    apical.alignment(learner, WORDS, NEXT, criterion)
    follows(model)


def test_an_embedding_that_renormalizes_is_refused():
    model = tied_words(nn.Embedding(9, 6, max_norm=1.0))
    with pytest.raises(ValueError, match=r"words: an embedding with max_norm .*leave max_norm out, or give that layer"):
        apical.attach(model, "kp")
    apical.attach(model, {"": "kp", "head": "fa"})
    learn(model, torch.optim.SGD(model.parameters(), 0.1), steps=1)
    model = tied_words()
    apical.attach(model, "kp")
    model.words.max_norm = 1.0
    with pytest.raises(RuntimeError, match="'head' shares its weights with an embedding: an embedding with max_norm"):
        model(WORDS)


class LooksUpByHand(Words):
    def forward(self, word):
        return self.head(self.hidden(F.embedding(word, self.head.weight)).tanh())


class AddsRows(Words):
    def forward(self, word):
        h = self.hidden(self.words(word)).tanh()
        return self.head(h + self.head.weight[word])


@pytest.mark.parametrize("kind", [LooksUpByHand, AddsRows])
def test_increments_from_elsewhere_are_refused_where_feedback_follows(kind):
    with pytest.raises(ValueError, match=r"head: .* learns outside of .* in \w+ at test_ties.py:\d+ \(.*nn\.Embedding"):
        apical.attach(kind(), "kp", example_input=WORDS)
    learner = apical.attach(kind(), {"": "kp", "head": "fa"}, example_input=WORDS)
    learn(learner.model, torch.optim.SGD(learner.model.parameters(), 0.1), steps=1)


def test_layers_that_share_a_weight_by_different_rules_are_refused_where_feedback_follows():
    def net():
        layers = [nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)]
        layers[4].weight = layers[2].weight
        return nn.Sequential(*layers)

    for rules in ({"": "kp", "4": "fa"}, {"": "fa", "2": "kp"}, {"": "kp", "4": "bp"}):
        with pytest.raises(
            ValueError, match=r"has the same weight, and rule 'kp'.* by rule '(fa|bp)'; give both one rule"
        ):
            apical.attach(net(), rules)
    apical.attach(net(), {"": "fa", "4": "bp"})
    apical.attach(net(), {"": "fa", "2": "kp", "4": "kp"})
