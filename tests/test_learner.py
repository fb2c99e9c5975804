"""States of models and learners, there and back."""

from __future__ import annotations

import copy

import pytest
import torch

from learning import RULES, attach, step
from networks import chain

STORED = ("fa", "frfb", "dfa", "ifa", "kp", "matched", "urfb", "kp-direct", "wm", "np", "np-direct", "sg", "sg-direct")


@pytest.mark.filterwarnings("ignore:rule .* has a phase of its own")
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_state_dicts_round_trip_into_a_plain_model_and_back(rule, assign):
    model = chain()
    learner = attach(model, rule)
    step(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    own = {name for name in state if name.endswith((".feedback", ".magnitudes"))}
    assert bool(own) == (rule in STORED or rule in ("brsf", "frsf"))

    plain = chain(1)
    result = plain.load_state_dict(state, strict=False, assign=assign)
    assert result.missing_keys == []
    assert set(result.unexpected_keys) == own

    fresh = chain(2)
    other = attach(fresh, rule, n=7)
    kept = {n: None if s.feedback is None else s.feedback.detach().clone() for n, s in other.synapses.items()}
    fresh.load_state_dict(plain.state_dict(), strict=True, assign=assign)
    for name, synapse in other.synapses.items():
        assert torch.equal(synapse.weight, model.get_submodule(name).weight)
        if rule in STORED:
            assert (synapse.feedback is None) == (kept[name] is None)
            assert kept[name] is None or torch.equal(synapse.feedback, kept[name])

    # From attached to attached: all of it, strictly, and the two learn the same from then on.
    fresh.load_state_dict(state, strict=True, assign=assign)
    other.load_state_dict(learner.state_dict())
    for name, synapse in learner.synapses.items():
        mine, theirs = synapse.feedback, other.synapses[name].feedback
        if mine is not None:
            assert torch.equal(mine, theirs), name
    torch.manual_seed(2)
    a = [step(model) for _ in range(2)]
    torch.manual_seed(2)
    assert [step(fresh) for _ in range(2)] == a
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_a_state_from_before_the_first_forward_fits_after_it_and_the_other_way_round():
    for rule in ("fa", "kp", "frsf"):
        early, late = chain(), chain(1)
        attach(early, rule), attach(late, rule, n=2)
        before = early.state_dict()
        step(late)
        late.load_state_dict(before)
        step(early)
        assert early.state_dict().keys() == late.state_dict().keys()
        untouched = chain(3)
        attach(untouched, rule, n=5)
        untouched.load_state_dict(early.state_dict())
        assert torch.equal(untouched[4].weight, early[4].weight)


def test_state_dicts_of_blocks():
    model = chain()
    learner = attach(model, "dfa", at=["2", "5"])
    state = model.state_dict()
    assert state["2.feedback"].shape == (3, 6)
    plain = chain(1)
    result = plain.load_state_dict(state, strict=False)
    assert result.missing_keys == []
    assert sorted(result.unexpected_keys) == ["2.feedback", "5.feedback"]
    other = chain(2)
    attach(other, "dfa", at=["2", "5"], n=8)
    mine = other[2].feedback.clone()
    other.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(other[2].feedback, mine)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other[2].feedback, learner.blocks["2"].feedback)
    with pytest.raises(RuntimeError, match=r"Missing key.*6\.weight"):
        other.load_state_dict({k: v for k, v in state.items() if k != "6.weight"}, strict=True)


def test_a_missing_weight_is_still_an_error_and_so_is_a_wrong_shape():
    model = chain()
    attach(model, "fa")
    state = model.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*4\.weight"):
        model.load_state_dict({k: v for k, v in state.items() if k != "4.weight"})
    with pytest.raises(RuntimeError, match=r"size mismatch for 4\.feedback"):
        model.load_state_dict({**state, "4.feedback": torch.ones(2, 2)})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*4\.nonsense"):
        model.load_state_dict({**state, "4.nonsense": torch.ones(2)})


def test_a_learners_state_is_refused_where_it_is_none():
    learner = attach(chain(), "brsf")
    with pytest.raises(ValueError, match="generator"):
        learner.load_state_dict({"weight": torch.ones(1)})


@pytest.mark.filterwarnings("ignore:rule .* has a phase of its own")
@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_ends_bitwise_like_one_that_was_not_interrupted(rule):
    model = chain()
    learner = attach(model, rule)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
    torch.manual_seed(0)
    for _ in range(2):
        step(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), learner.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    for _ in range(3):
        step(model, optimizer)
    again = chain(8)
    other = attach(again, rule, n=99)
    optimizer = torch.optim.Adam(again.parameters(), lr=0.01, weight_decay=1e-3)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[2])
    torch.set_rng_state(saved[3])
    for _ in range(3):
        step(again, optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), (rule, name)
