"""Parameters keep their identity, and detach gives back the plain model."""

from __future__ import annotations

import pytest
import torch

import apical
from comparison import anatomy, untouched
from learning import RULES, TRAINED, attach, gradients, step
from networks import X, Y, chain


@pytest.mark.parametrize("rule", RULES)
def test_parameters_keep_identity_and_name_and_an_older_optimizer_still_moves_them(rule):
    model = chain()
    before = dict(model.named_parameters())
    learner = attach(model, rule)
    after = dict(model.named_parameters())
    assert all(after[name] is p for name, p in before.items())
    assert {id(p) for p in learner.forward_parameters()} == {id(p) for p in before.values()}
    extra = [name for name in after if name not in before]
    assert bool(extra) == (rule in TRAINED)
    assert all(name.endswith(".feedback") for name in extra)
    assert [id(p) for p in learner.feedback_parameters()] == [id(after[name]) for name in extra]
    if rule not in TRAINED:
        values = {name: p.detach().clone() for name, p in before.items()}
        step(model, torch.optim.SGD(before.values(), lr=0.1))
        assert not torch.equal(before["6.weight"], values["6.weight"])
        assert torch.equal(before["0.weight"], values["0.weight"]) == (rule in ("shallow", "reinforce"))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_detach_gives_back_the_very_same_plain_model(rule, trained):
    model = chain()
    before = anatomy(model)
    learner = attach(model, rule)
    if trained:
        step(model), step(model)
    assert learner.detach() is model
    untouched(before, anatomy(model), values=not trained)
    assert learner.synapses == {}
    assert learner.feedback_parameters() == []
    plain = chain(9)
    plain.load_state_dict(model.state_dict())
    plain.eval(), model.eval()
    got, expected = gradients(model), gradients(plain)
    assert got.keys() == expected.keys()
    for name, g in expected.items():
        assert torch.equal(got[name], g)


def test_detach_gives_back_blocks_and_user_hooks_survive():
    model = chain()
    calls = []
    model[4].register_forward_hook(lambda *a: calls.append("forward"))
    model.register_forward_pre_hook(lambda *a: calls.append("pre"))
    model.register_load_state_dict_post_hook(lambda *a: calls.append("load"))
    before = anatomy(model)
    learner = attach(model, "dfa", at=["2", "5"])
    step(model)
    learner.detach()
    untouched(before, anatomy(model), values=False)
    calls.clear()
    model(X)
    assert calls == ["pre", "forward"]


def test_detach_and_attach_another_rule_and_back_again():
    model = chain()
    plain = anatomy(model)
    for rule in RULES:
        learner = attach(model, rule)
        assert apical.learner_of(model) is learner
        assert learner.rule.name == rule
        learner.detach()
        with pytest.raises(ValueError, match="nothing is attached"):
            apical.learner_of(model)
    untouched(plain, anatomy(model))


def test_an_old_learner_that_is_detached_again_leaves_the_new_one_alone():
    model = chain()
    old = attach(model, "fa")
    old.detach()
    new = attach(model, "kp")
    old.detach()
    assert apical.learner_of(model) is new
    assert isinstance(model[0], apical.Synapse)


def test_user_hooks_on_layers_fire_as_before_and_see_the_teaching_signal():
    for rule in ("bp", "fa", "dfa"):
        model = chain()
        seen = {}
        model[4].register_full_backward_hook(lambda m, gi, go, s=seen: s.update(into=gi[0], out=go[0]))
        learner = attach(model, rule)
        model.eval()
        gradients(model)
        assert seen["out"].shape == (8, 6)
        delta = seen["out"]
        torch.testing.assert_close(model[4].weight.grad.sum(1).shape, torch.Size([6]))
        torch.testing.assert_close(model[4].bias.grad, delta.sum(0))
        e = torch.softmax(model(X).detach(), 1)
        e[range(8), Y] -= 1
        signal = e / 8 @ learner.synapses["4"].feedback if rule == "dfa" else delta @ learner.synapses["4"].feedback
        torch.testing.assert_close(seen["into"], signal.detach())
