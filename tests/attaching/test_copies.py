"""Copies and pickles of attached models learn apart, and exactly like the original."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import apical
from learning import RULES, attach, spread, step
from networks import X, Y, chain


def by_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def by_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def by_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("rule", "make", "when"),
    spread(
        RULES,
        [by_copy, by_pickle, by_save],
        ["before the first forward", "after", "between forward and backward"],
    ),
)
def test_a_copy_learns_independently_and_exactly_like_the_original(rule, make, when):
    model = chain()
    learner = attach(model, rule)
    if when == "after":
        step(model)
    if when == "between forward and backward":
        if make is by_copy:
            pending = nn.functional.cross_entropy(model(X), Y)
            twin = make(model)
            pending.backward()
        else:
            pending = nn.functional.cross_entropy(model(X), Y)
            twin = make(model)
        model.zero_grad()
    else:
        twin = make(model)
    other = apical.learner_of(twin)
    assert other is not learner
    assert other.model is twin
    assert other.generator is not learner.generator
    assert torch.equal(other.generator.get_state(), learner.generator.get_state())
    assert other.synapses.keys() == learner.synapses.keys()
    for name, synapse in other.synapses.items():
        assert synapse is twin.get_submodule(name)
        assert synapse is not learner.synapses[name]
        assert synapse.circuit is other.circuit
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
    assert not {id(b) for b in model.buffers()} & {id(b) for b in twin.buffers()}

    start = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, weight_decay=0.01)
    torch.manual_seed(4)
    losses = [step(twin, optimizer) for _ in range(3)]
    # The original has not moved ...
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, start[name]), name
    # ... and takes exactly the same way.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    torch.manual_seed(4)
    assert [step(model, optimizer) for _ in range(3)] == losses
    mine, theirs = model.state_dict(), twin.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(theirs[name], tensor), name
    assert torch.equal(other.generator.get_state(), learner.generator.get_state())
    assert (learner.synapses["0"].feedback is None) == (other.synapses["0"].feedback is None)
    # The copy detaches by itself.
    other.detach()
    assert type(twin[0]) is nn.Linear
    assert isinstance(model[0], apical.Synapse)
    step(model), step(twin)


def test_copies_with_blocks_and_optimizers_together():
    model = chain()
    attach(model, "kp-direct", at=["2", "5"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step(model, optimizer)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    torch.manual_seed(1)
    a = [step(model, optimizer) for _ in range(3)]
    torch.manual_seed(1)
    assert [step(twin, twin_optimizer) for _ in range(3)] == a
    assert list(apical.learner_of(twin).blocks) == ["2", "5"]
    assert apical.learner_of(twin).blocks["2"] is twin[2]
    assert torch.equal(twin[2].feedback, model[2].feedback)
    assert twin[2].feedback is not model[2].feedback


def test_a_pickled_learner_brings_its_model():
    model = chain()
    learner = attach(model, "brsf")
    step(model)
    other = pickle.loads(pickle.dumps(learner))
    assert apical.learner_of(other.model) is other
    assert torch.equal(torch.rand(3, generator=other.generator), torch.rand(3, generator=learner.generator))


def test_a_copy_of_a_part_is_no_trap():
    """The part of a model taught layer by layer goes on learning by itself."""
    model = nn.Sequential(chain(), nn.Linear(3, 3))
    attach(model, "fa")
    part = copy.deepcopy(model[0])
    step(part)
    assert part[0].weight.grad.abs().sum() > 0
