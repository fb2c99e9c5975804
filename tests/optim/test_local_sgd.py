"""LocalSGD against torch.optim.SGD, step for step."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import apical
import comparison
from apical.losses import cross_entropy
from apical.synapses import registry
from learning import RULES, spread
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import convolutions, dynamo, flat_chain, tied_words

SETTINGS = {
    "plain": {},
    "decay": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.01},
    "dampening": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}


class Twice(nn.Module):
    """One layer used twice, on [N, T, F]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.first(x.flatten(2)[:, :, :6]))
        return self.head(torch.tanh(self.again(torch.tanh(self.again(h)))).mean(1))


def attach(net, rule) -> apical.Learner:
    return apical.attach(net, rule, example_input=X, generator=torch.Generator().manual_seed(3))


def learn(forward, learner, moves, steps=1):
    for _ in range(steps):
        cross_entropy(forward(X), Y).mean().backward()
        learner.adapt(X, Y, cross_entropy)
        moves.step()
        moves.zero_grad()


def run(make, rule, optimizer, steps=4, schedule=False):
    net = make()
    learner = attach(net, rule)
    moves = optimizer(learner)
    scheduler = torch.optim.lr_scheduler.StepLR(moves, 2, 0.5) if schedule else None
    torch.manual_seed(4)
    for _ in range(steps):
        learn(net, learner, moves)
        if scheduler is not None:
            scheduler.step()
    return net, learner, moves


def equal(a: nn.Module, b: nn.Module) -> None:
    comparison.equal(a.state_dict(), b.state_dict(), 1e-12)


@pytest.mark.parametrize(("make", "rule", "settings"), spread([flat_chain, convolutions, Twice], RULES, SETTINGS))
def test_equal_to_torch_step_for_step(make, rule, settings):
    if rule == "ifa" and make is not flat_chain:
        pytest.skip("needs a chain that keeps shape")
    settings = SETTINGS[settings]
    local, _, _ = run(make, rule, lambda learner: apical.LocalSGD(learner, 0.05, **settings), schedule=True)
    plain, _, _ = run(
        make, rule, lambda learner: torch.optim.SGD(learner.model.parameters(), 0.05, **settings), schedule=True
    )
    equal(local, plain)


def test_no_gradient_is_kept_and_hebbian_feedback_follows():
    net = flat_chain()
    learner = attach(net, "kp")
    moves = apical.LocalSGD(learner, 0.1)
    before = net[4].feedback.detach().clone()
    cross_entropy(net(X), Y).mean().backward()
    for synapse in learner.synapses.values():
        assert synapse.weight.grad is None
    assert net[4].feedback.grad is None
    assert not torch.equal(net[4].feedback, before)
    assert net[4].bias.grad is None
    assert net[2].bias.grad is not None  # Batch normalization's goes the ordinary way.
    moves.step()


def test_groups_have_options_of_their_own():
    def groups(learner):
        inner = [p for name, p in learner.model.named_parameters() if not name.startswith("6")]
        outer = [p for name, p in learner.model.named_parameters() if name.startswith("6")]
        return [{"params": inner}, {"params": outer, "lr": 0.2, "momentum": 0.5}]

    local, _, _ = run(flat_chain, "kp", lambda learner: apical.LocalSGD(learner, 0.05, params=groups(learner)))
    plain, _, _ = run(flat_chain, "kp", lambda learner: torch.optim.SGD(groups(learner), 0.05))
    equal(local, plain)


def test_a_state_goes_on_as_if_it_had_never_stopped():
    whole, _, _ = run(flat_chain, "fa", lambda learner: apical.LocalSGD(learner, 0.05, 0.9), steps=6)
    net, _, moves = run(flat_chain, "fa", lambda learner: apical.LocalSGD(learner, 0.05, 0.9), steps=3)
    state, own = copy.deepcopy(net.state_dict()), copy.deepcopy(moves.state_dict())
    other = flat_chain()
    its = attach(other, "fa")
    other.load_state_dict(state)
    again = apical.LocalSGD(its, 0.05, 0.9)
    again.load_state_dict(own)
    learn(other, its, again, steps=3)
    equal(other, whole)


def switching(first, then, *, at=3, steps=6, during=None, keep=copy.deepcopy, rule="kp"):
    """A network that learns by optimizer `first`, and from step `at` on by `then` with its state."""
    net = flat_chain()
    learner = attach(net, rule)
    moves = first(learner)
    forward = net
    for step in range(steps):
        if step == at and then is not None:
            state = keep(moves.state_dict())
            moves = then(learner)
            moves.load_state_dict(state)
        if during is not None:
            forward = during(step, learner) or forward
        learn(forward, learner, moves)
    return net


def local_momentum(learner):
    return apical.LocalSGD(learner, 0.05, 0.9)


def plain_momentum(learner):
    return torch.optim.SGD(learner.model.parameters(), 0.05, 0.9)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("keep", [copy.deepcopy, through_a_file, lambda state: state], ids=["copy", "file", "as it is"])
@pytest.mark.parametrize("rule", ["kp", "fa"])
def test_its_state_is_that_of_torch_and_either_goes_on_with_it(rule, keep):
    whole = switching(plain_momentum, None, rule=rule)
    for first in (local_momentum, plain_momentum):
        for then in (local_momentum, plain_momentum):
            equal(switching(first, then, rule=rule, keep=keep), whole)


def test_a_loaded_state_goes_on_to_the_last_bit():
    whole, again = switching(local_momentum, None), switching(local_momentum, local_momentum)
    assert all(torch.equal(mine, its) for mine, its in zip(whole.parameters(), again.parameters(), strict=True))


@dynamo
def test_compiled_later_learns_as_with_torch():
    torch.compiler.reset()

    def compiled(step, learner):
        return torch.compile(learner.model, backend="eager") if step == 3 else None

    equal(switching(local_momentum, None, during=compiled), switching(plain_momentum, None, during=compiled))


def test_feedback_that_is_frozen_for_a_while_keeps_a_velocity_of_its_own():
    def freeze(step, learner):
        for feedback in learner.feedback_parameters():
            feedback.requires_grad_(not 2 <= step < 4)

    equal(switching(local_momentum, None, during=freeze), switching(plain_momentum, None, during=freeze))


@pytest.mark.parametrize("rule", ["fa", "kp", "np"])
def test_one_that_is_gone_moves_nothing_more(rule):
    def train(optimizers):
        net = flat_chain()
        learner = attach(net, rule)
        torch.manual_seed(4)
        for make in optimizers:
            moves = make(learner)
            learn(net, learner, moves, steps=2)
            del moves
        return net

    equal(train([local_momentum, plain_momentum]), train([plain_momentum, plain_momentum]))


def test_a_pass_whose_optimizer_is_gone_is_refused():
    net = flat_chain()
    learner = attach(net, "fa")
    moves = local_momentum(learner)
    loss = cross_entropy(net(X), Y).mean()
    del moves
    with pytest.raises(RuntimeError, match=r"the LocalSGD .* is gone"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:the feedback of")  # Kolen-Pollack's law is not what this is about.
@pytest.mark.parametrize("change", [{"weight_decay": 0.1}, {"momentum": 0.5}, {"nesterov": True}])
@pytest.mark.parametrize("group", [0, 1])
def test_a_velocity_that_weights_and_feedback_share_parts_when_their_options_do(group, change):
    def groups(learner):
        feedback = learner.feedback_parameters()
        return [{"params": learner.forward_parameters()}, {"params": feedback, "lr": 0.02}]

    def train(optimizer):
        net = flat_chain()
        learner = attach(net, "kp")
        moves = optimizer(learner)
        for step in range(6):
            if step == 3:
                if optimizer is local:
                    ours = [moves.state[p]["momentum_buffer"] for p in (net[4].weight, net[4]._parameters["feedback"])]
                    assert ours[0] is ours[1]
                moves.param_groups[group].update(change)
            cross_entropy(net(X), Y).mean().backward()
            moves.step()
            moves.zero_grad()
        return net

    def local(learner):
        return apical.LocalSGD(learner, 0.05, 0.9, params=groups(learner))

    equal(train(local), train(lambda learner: torch.optim.SGD(groups(learner), 0.05, 0.9)))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("rule", ["kp", "np"])
def test_a_copy_of_model_and_optimizer_goes_on_alike_and_apart(rule, order, make):
    net, learner, moves = run(flat_chain, rule, lambda one: apical.LocalSGD(one, 0.05, 0.9))
    other, its = make((net, moves)[::order])[::order]
    assert isinstance(its, apical.LocalSGD)
    for model, own, one in ((net, learner, moves), (other, apical.learner_of(other), its)):
        before = copy.deepcopy(other.state_dict())
        for _ in range(2):
            cross_entropy(model(X), Y).mean().backward()
            own.adapt(X, Y, cross_entropy)
            assert model[4].weight.grad is None
            one.step()
            one.zero_grad()
        assert torch.equal(other[4].weight, before["4.weight"]) == (model is net)
    equal(net, other)


def test_a_loaded_state_brings_its_learning_rate_even_after_a_step():
    net, _, moves = run(flat_chain, "fa", lambda learner: apical.LocalSGD(learner, 0.05), steps=1)
    state = copy.deepcopy(moves.state_dict())
    state["param_groups"][0]["lr"] = 0.0
    moves.load_state_dict(state)
    before = copy.deepcopy(net[4].weight)
    cross_entropy(net(X), Y).mean().backward()
    moves.step()
    assert torch.equal(net[4].weight, before)


def test_frozen_left_out_and_tied_weights_are_as_with_torch():
    def freeze(learner, optimizer):
        learner.model[4].requires_grad_(False)
        return optimizer([p for name, p in learner.model.named_parameters() if not name.startswith("6")])

    local, _, _ = run(flat_chain, "fa", lambda one: freeze(one, lambda ps: apical.LocalSGD(one, 0.05, 0.9, params=ps)))
    plain, _, _ = run(flat_chain, "fa", lambda one: freeze(one, lambda ps: torch.optim.SGD(ps, 0.05, 0.9)))
    equal(local, plain)

    def tied():
        net = flat_chain()
        net[4].weight = nn.Parameter(net[4].weight.detach().clone())
        net.insert(5, nn.Linear(9, 9).double())
        net[5].weight = net[4].weight
        return net

    for rule in ("bp", "fa", "kp"):
        local, _, _ = run(tied, rule, lambda learner: apical.LocalSGD(learner, 0.05, 0.9))
        plain, _, _ = run(tied, rule, lambda learner: torch.optim.SGD(learner.model.parameters(), 0.05, 0.9))
        equal(local, plain)


@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_below_a_head_tied_to_an_embedding_weights_move_in_the_backward_pass(rule):
    net, words = tied_words(), torch.arange(9)
    net.head.register_parameter("bias", nn.Parameter(torch.zeros(9).double()))
    moves = apical.LocalSGD(apical.attach(net, rule), 0.05)
    before = net.hidden.weight.detach().clone()
    cross_entropy(net(words), words).mean().backward()
    assert net.head.weight.grad is not None
    assert net.hidden.weight.grad is None
    assert not torch.equal(net.hidden.weight, before)
    moves.step()


def test_measuring_and_passes_without_backward_move_nothing():
    net = flat_chain()
    learner = attach(net, "np")
    moves = apical.LocalSGD(learner, 0.1, 0.9)
    before = copy.deepcopy(net.state_dict())
    net.eval()
    net(X)
    apical.alignment(learner, X, Y, cross_entropy)
    apical.audit(learner, X, Y, cross_entropy)
    moves.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@dynamo
@pytest.mark.parametrize(
    "rule", ["kp", "dfa", "reinforce", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("fa", "np"))]
)
def test_compiled_code_learns_as_with_torch(rule):
    def train(optimizer, compiled):
        torch.compiler.reset()
        net = flat_chain()
        learner = attach(net, rule)
        moves = optimizer(learner)
        learn(torch.compile(net, backend="eager") if compiled else net, learner, moves, steps=3)
        return net

    equal(train(local_momentum, True), train(plain_momentum, False))


def test_what_it_can_not_do_is_refused():
    net = flat_chain()
    learner = attach(net, "fa")
    moves = apical.LocalSGD(learner, 0.1)
    cross_entropy(net(X), Y).mean().backward()
    after = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"second backward pass before step\(\).*torch.optim.SGD"):
        cross_entropy(net.eval()(X), Y).mean().backward()
    assert all(torch.equal(value, after[name]) for name, value in net.state_dict().items())
    moves.step()
    (cross_entropy(net(X), Y).mean() + net[1].weight.sum()).backward()
    with pytest.raises(RuntimeError, match="'1' got a gradient besides"):
        moves.step()
    for options, says in (
        ({"lr": -1}, "lr"), ({"lr": 0.1, "momentum": -0.1}, "momentum"), ({"lr": 0.1, "weight_decay": "x"}, "weight_decay"),
        ({"lr": 0.1, "nesterov": True}, "nesterov"), ({"momentum": 0.9, "dampening": "a"}, "dampening must be a number, got 'a'"),
        ({"dampening": float("nan")}, "dampening must"), ({"dampening": None, "nesterov": True}, "dampening must"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            apical.LocalSGD(learner, **options)
    with pytest.raises(TypeError, match=r"apical\.attach"):
        apical.LocalSGD(net, 0.1)


@pytest.mark.parametrize("rule", ["fa", "kp"])
def test_hooks_at_the_steps_of_every_optimizer_are_called(rule):
    moves = apical.LocalSGD(attach(flat_chain(), rule), 0.1)
    called = []
    handles = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: called.append(("before", optimizer))),
        register_optimizer_step_post_hook(lambda optimizer, *_: called.append(("after", optimizer))),
    ]
    try:
        moves.step()
    finally:
        for handle in handles:
            handle.remove()
    moves.step()
    assert called == [("before", moves), ("after", moves)]


@dynamo
@pytest.mark.parametrize("rule", ["kp", "kp-direct"])
def test_trainable_feedback_that_no_optimizer_holds_is_refused_before_anything_moves(rule):
    net = flat_chain()
    learner = attach(net, rule)
    moves = apical.LocalSGD(learner, 0.1, params=learner.forward_parameters())
    before = copy.deepcopy(net.state_dict())
    net.eval()

    def step(call):
        cross_entropy(call(X), Y).mean().backward()
        moves.step()

    for call in (net, net, *([torch.compile(net, backend="eager")] if rule == "kp" else [])):
        with pytest.raises(RuntimeError, match=r"no optimizer holds the feedback of '4'.*add_param_group"):
            step(call)
    net.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    moves.add_param_group({"params": learner.feedback_parameters()})
    step(net)
    assert not torch.equal(net[4].feedback, before["4.feedback"])


@pytest.mark.parametrize("rule", ["kp", "kp-direct"])
def test_trainable_feedback_may_have_an_optimizer_of_its_own(rule):
    class Pair:
        def __init__(self, *moves):
            self.moves = moves

        def step(self):
            for one in self.moves:
                one.step()

        def zero_grad(self):
            for one in self.moves:
                one.zero_grad()

    def other(learner):
        return torch.optim.SGD(learner.feedback_parameters(), 0.02, 0.5)

    local, _, _ = run(
        flat_chain, rule, lambda one: Pair(apical.LocalSGD(one, 0.05, 0.9, params=one.forward_parameters()), other(one))
    )
    plain, _, _ = run(
        flat_chain, rule, lambda one: Pair(torch.optim.SGD(one.forward_parameters(), 0.05, 0.9), other(one))
    )
    equal(local, plain)


def test_a_copy_learns_with_an_optimizer_of_its_own():
    net, _, _ = run(flat_chain, "kp", lambda learner: apical.LocalSGD(learner, 0.05, 0.9))
    other = copy.deepcopy(net)
    cross_entropy(other(X), Y).mean().backward()
    assert other[4].weight.grad is not None
    before = net[4].weight.detach().clone()
    torch.optim.SGD(other.parameters(), 0.1).step()
    assert torch.equal(net[4].weight, before)


class Doubled(nn.Linear):
    """Computes what nn.Linear does; its synapse learns twice as fast."""


class DoubledSynapse(apical.LinearSynapse, Doubled):
    def hebbian(self, x, delta, geometry=()):
        return 2 * super().hebbian(x, delta, geometry)


class AtOnceSynapse(apical.LinearSynapse, Doubled):
    def respond(self, x, delta, feedback, shape, geometry, need_weight, need_bias):
        signal, product, bias = super().respond(x, delta, feedback, shape, geometry, need_weight, need_bias)
        return signal, None if product is None else 2 * product, bias


@pytest.mark.parametrize("synapse", [DoubledSynapse, AtOnceSynapse])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_kind_that_changes_the_product_is_heard(momentum, synapse, monkeypatch):
    monkeypatch.setattr(registry, "SYNAPSES", dict(registry.SYNAPSES))
    apical.register_synapse(Doubled, synapse)

    def train(kind, optimizer):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), kind(72, 9, bias=False), nn.Tanh(), kind(9, 3, bias=False)).double()
        moves = optimizer(attach(net, "kp"))
        cross_entropy(net(X), Y).mean().backward()
        moves.step()
        return net

    def plain(rate):
        return lambda learner: torch.optim.SGD(learner.model.parameters(), rate, momentum)

    twice = train(nn.Linear, plain(0.2))
    equal(train(Doubled, plain(0.1)), twice)
    equal(train(Doubled, lambda learner: apical.LocalSGD(learner, 0.1, momentum)), twice)
