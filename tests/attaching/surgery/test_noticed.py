"""Surgery on a model after attach is noticed by the next pass that learns, and taken in by refresh."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import apical
from comparison import equal
from learning import TRAINED, attach, gradients, step
from networks import X, Y, chain, dynamo, plain_chain, seed


def feedback(learner) -> dict:
    owners = {**learner.synapses, **learner.blocks}
    return {name: None if o.feedback is None else o.feedback.detach().clone() for name, o in owners.items()}


def wide(net: nn.Sequential) -> None:
    net.append(nn.Tanh())
    net.append(nn.Linear(3, 3))


def low_rank(net: nn.Sequential) -> None:
    net[4] = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6))


def by_dict(net: nn.Sequential) -> None:
    net._modules["6"] = nn.Linear(6, 3)


def resized(net: nn.Sequential) -> None:
    net[6].weight, net[6].bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.zeros(4))


CUTS = {
    "a new head": (lambda net: setattr(net, "6", nn.Linear(6, 3)), "in place of '6' stands a Linear", {"0", "4"}),
    "a larger head": (lambda net: setattr(net, "6", nn.Linear(6, 5)), "in place of '6' stands a Linear", {"0", "4"}),
    "written to the dict": (by_dict, "in place of '6' stands a Linear", {"0", "4"}),
    "a layer more": (wide, "'8' is a Linear that is not attached", {"0", "4", "6"}),
    "two for one": (low_rank, r"in place of '4' stands a Sequential.*'4.0' is a Linear.*'4.1' is a Linear", {"0", "6"}),
    "a layer less": (lambda net: net.__delitem__(slice(5, 7)), "'6' is gone", {"0", "4"}),
    "renamed": (lambda net: net.insert(2, nn.Identity()), "'4' is '5' now.*'6' is '7' now", {"0"}),
    "a resized weight": (resized, r"the weights of '6' are \[4, 6\] now, and were \[3, 6\]", {"0", "4"}),
}


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        *(("fa", False), ("kp", False), ("usf", False), ("wm", False)),
        *((rule, True) for rule in ("fa", "kp", "dfa", "kp-direct", "brsf", "np", "reinforce")),
    ],
)
@pytest.mark.parametrize("cut", CUTS)
def test_surgery_is_told_by_name_at_the_next_pass_and_refresh_mends_it(cut, rule, shown):
    operate, says, kept = CUTS[cut]
    net = chain()
    learner = apical.attach(net, rule, example_input=X if shown else None, generator=seed())
    step(net)
    before, parameters = feedback(learner), {id(p) for p in learner.feedback_parameters()}
    operate(net)
    with torch.no_grad():
        net(X)  # Nothing learns here.
    with pytest.raises(RuntimeError, match=rf"(?s)Sequential was changed after attach.*{says}.*learner\.refresh\(\)"):
        net(X)
    learner.refresh()
    assert all(learner.synapses[name] is net.get_submodule(name) for name in learner.synapses)
    assert {name for name, m in net.named_modules() if isinstance(m, nn.Linear)} == learner.synapses.keys()
    assert all(isinstance(m, apical.Synapse) for m in net.modules() if isinstance(m, nn.Linear))
    after = feedback(learner)
    resized_outputs = apical.rule(rule).direct and cut not in (
        "a new head",
        "written to the dict",
        "a layer more",
        "renamed",
    )
    for name in kept if not (resized_outputs or rule == "brsf") else ():
        if before[name] is not None:
            assert torch.equal(after[name], before[name]), name
    if rule in TRAINED and not apical.rule(rule).direct:
        assert parameters & {id(p) for p in learner.feedback_parameters()}
    # It learns as a network that was attached as it is now.
    fresh = copy.deepcopy(net)
    apical.learner_of(fresh).detach()
    again = apical.attach(fresh, rule, example_input=X, generator=seed(1))
    for name, synapse in again.synapses.items():
        if synapse.feedback is not None and rule not in ("usf", "brsf", "bp"):
            synapse.feedback = learner.synapses[name].feedback
    net.eval(), fresh.eval()
    y = Y % net(X).shape[1]
    mine, its = gradients(net, X, y), gradients(fresh, X, y)
    assert mine.keys() == its.keys()
    if rule not in ("reinforce", "brsf"):  # Those have noise of their own.
        for name, g in its.items():
            torch.testing.assert_close(mine[name], g, msg=lambda m, n=name: f"{n}: {m}")
    learner.adapt(X, y, lambda o, t: F.cross_entropy(o, t, reduction="none"))
    assert [p is None for p in feedback(learner).values()] == [p is None for p in feedback(again).values()]


@pytest.mark.parametrize("optimizer", ["sgd", "local"])
@pytest.mark.parametrize("rule", ["fa", "kp", "frsf", "wm"])
def test_weights_resized_by_data_are_told_where_they_no_longer_fit(rule, optimizer):
    net = chain()
    learner = apical.attach(net, rule, generator=seed())
    moves = apical.LocalSGD(learner, 0.1) if optimizer == "local" else None
    step(net, moves)
    net[6].weight.data, net[6].bias.data = torch.randn(4, 6), torch.zeros(4)
    with pytest.raises(RuntimeError, match=r"the weights of '6' are \[4, 6\] now, and were \[3, 6\]"):
        step(net, moves)
    learner.refresh()
    if moves is not None and rule == "kp":
        moves.add_param_group({"params": [net[6].feedback]})
    step(net, moves)


def test_changes_that_no_synapse_has_to_do_with_pass():
    net = chain()
    learner = attach(net, "dfa")
    net[2] = nn.ReLU()
    net[3].p = 0.0
    step(net)
    net.add_module("spare", nn.Dropout(0.1))
    step(net)
    del net.spare
    before = feedback(learner)
    step(net)
    learner.refresh()
    equal(feedback(learner) | {"0": X}, before | {"0": X})


@pytest.mark.parametrize("optimizer", ["sgd", "local"])
@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_optimizers_hold_on_to_what_stays_and_take_what_is_new(rule, optimizer):
    net = plain_chain()
    learner = attach(net, rule)
    moves = (
        torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        if optimizer == "sgd"
        else apical.LocalSGD(learner, 0.1, momentum=0.9)
    )
    step(net, moves)
    net[4] = nn.Linear(6, 3)
    learner.refresh()
    old = {id(p) for group in moves.param_groups for p in group["params"]}
    moves.add_param_group({"params": [p for p in net.parameters() if id(p) not in old]})
    assert {name for name, p in net.named_parameters() if id(p) not in old} <= {"4.weight", "4.bias", "4.feedback"}
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    step(net, moves), step(net, moves)
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved >= {"0.weight", "2.weight", "4.weight", "4.bias"}
    if rule == "kp":
        difference = before["4.weight"] - before["4.feedback"]
        torch.testing.assert_close(net[4].weight - net[4].feedback, difference, rtol=1e-5, atol=1e-6)


def test_rules_and_connectivity_of_new_layers_are_those_given_for_their_place():
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 3))
    learner = apical.attach(net, {"": "fa", "1": "kp", "2": "bp"}, connectivity={"1": 0.5}, generator=seed())
    mask, B = net[1][1].weight_mask, net[1][1].feedback
    net[1].append(nn.Linear(6, 6))
    net[2] = nn.Linear(6, 3)
    learner.refresh()
    assert {name: rule.name for name, rule in learner.rules.items()} == {"0": "fa", "1.1": "kp", "1.2": "kp", "2": "bp"}
    assert net[1][1].weight_mask is mask
    assert net[1][1].feedback is B
    assert net[1][2].sparse
    assert not net[2].sparse
    del net[2]
    learner.refresh()
    assert list(learner.synapses) == ["0", "1.1", "1.2"]
    assert learner.rules["0"].name == "fa"


def test_what_cant_be_taken_in_is_told_and_leaves_the_learner_as_it_was():
    net = plain_chain()
    learner = attach(net, "fa")
    before = feedback(learner)
    net[2] = nn.Sequential()
    net[2].W = nn.Parameter(torch.eye(6))
    with pytest.raises(ValueError, match=r"(?s)can't take in the changes.*2: Sequential holds W"):
        learner.refresh()
    assert learner.synapses.keys() == {"0", "2", "4"}
    equal(
        {n: t for n, t in feedback(learner).items() if t is not None},
        {n: t for n, t in before.items() if t is not None},
    )
    other = plain_chain()
    attach(other, "fa")
    net[2] = other[2]
    with pytest.raises(ValueError, match="'2' is a synapse of another learner"):
        learner.refresh()
    net[2] = nn.Linear(6, 7)
    direct = plain_chain()
    taught = attach(direct, "dfa")
    direct[2] = nn.Linear(6, 7)
    with pytest.raises(ValueError, match=r"does not pass through the model.*refresh\(example_input=...\)"):
        taught.refresh()
    assert isinstance(direct[0], apical.Synapse)
    direct[4] = nn.Linear(7, 3)
    taught.refresh()
    step(direct)
    learner.detach()
    with pytest.raises(ValueError, match="detached"):
        learner.refresh()


def test_blocks_are_kept_and_new_ones_get_feedback():
    net = plain_chain()
    learner = attach(net, "dfa", at=["1", "3"])
    before = feedback(learner)
    net[3] = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    with pytest.raises(RuntimeError, match="in place of '3' stands a Sequential"):
        net(X)
    learner.refresh()
    assert torch.equal(feedback(learner)["1"], before["1"])
    assert learner.blocks["3"] is net[3]
    step(net)


def test_a_copy_and_a_pickle_notice_surgery_of_their_own():
    net = plain_chain()
    attach(net, "kp")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        step(twin)
        twin[4] = nn.Linear(6, 3)
        with pytest.raises(RuntimeError, match="in place of '4'"):
            twin(X)
        apical.learner_of(twin).refresh()
        step(twin)
    step(net)


@pytest.mark.parametrize("rule", ["fa", "kp", "dfa"])
def test_a_network_that_is_as_it_was_has_no_hook_more_and_one_that_was_changed_is_freed(rule):
    net, other = plain_chain(), plain_chain()
    attach(net, rule), attach(other, rule)
    step(net), step(other)
    hooks = len(net._forward_pre_hooks)
    assert hooks == (rule == "dfa")
    net[1] = nn.ReLU()
    step(net), step(other)
    assert len(net._forward_pre_hooks) == hooks
    gone = weakref.ref(net)
    net[2] = nn.Linear(6, 6)
    del net
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_layers_replaced_all_at_once_are_told(rule):
    net = plain_chain()
    attach(net, rule)
    for i in (0, 2, 4):
        net[i] = nn.Linear(net[i].in_features, net[i].out_features)
    with pytest.raises(RuntimeError, match=r"(?s)'0'.*'2'.*'4'.*refresh"):
        net(X)
    apical.learner_of(net).refresh()
    step(net)


def test_a_part_that_is_called_alone_tells_too():
    net = nn.Sequential(plain_chain(), nn.Tanh(), nn.Linear(3, 3))
    attach(net, "fa")
    net[0][4].weight = nn.Parameter(torch.zeros(4, 6))
    with pytest.raises(RuntimeError, match=r"the weights of '0\.4'"):
        net[0](X)


@dynamo
def test_compiled_code_tells_as_well():
    net = plain_chain()
    learner = attach(net, "kp")
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    compiled(X).sum().backward()
    net[1] = nn.ReLU()
    compiled(X).sum().backward()
    assert not learner.circuit.suspected
    net[4] = nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match="in place of '4'"):
        compiled(X)
    learner.refresh()
    compiled(X).sum().backward()


def test_copies_of_synapses_and_parameters_that_nothing_covers_are_told():
    net = plain_chain()
    learner = attach(net, "fa")
    before, net[2] = net[2], copy.deepcopy(net[2])
    with pytest.raises(RuntimeError, match="in place of '2'"):
        net(X)
    with pytest.raises(ValueError, match="'2' is a synapse of another learner, or a copy of one"):
        learner.refresh()
    net[2] = before
    step(net)
    net.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match=r"\(the model itself\) has parameters that no synapse covers"):
        net(X)


def test_an_audit_sees_what_was_put_in_and_alignment_refuses():
    net = plain_chain()
    learner = attach(net, "fa")
    net[2] = nn.Linear(6, 6)
    criterion = nn.CrossEntropyLoss(reduction="none")
    assert apical.audit(learner, X, Y, criterion).transported["2"] == "weights"
    with pytest.raises(RuntimeError, match="in place of '2'"):
        apical.alignment(learner, X, Y, criterion)
    learner.refresh()
    assert apical.audit(learner, X, Y, criterion).summary == "nothing"
    assert apical.alignment(learner, X, Y, criterion).keys() == {"0", "2", "4"}


def test_replicas_are_told_to_be_made_anew():
    replicas = apical.replicate(plain_chain(), 2)
    learner = apical.attach(replicas, "fa", generator=seed())
    replicas.model[4] = nn.Linear(12, 6)
    with pytest.raises(RuntimeError, match="make replicas of the changed network anew"):
        replicas(torch.stack([X, X]))
    with pytest.raises(ValueError, match="make replicas of the changed network anew"):
        learner.refresh()
