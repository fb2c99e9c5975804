"""Masks stay where they were drawn, whatever learns, moves, copies or computes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import apical
from apical.losses import cross_entropy
from apical.synapses import registry
from comparison import equal
from learning import RULES, spread
from networks import CLASSES as Y
from networks import DOUBLES as X
from networks import convolutions, dynamo, flat_chain, seed
from synapses.common import attach, learn, near, sgd, state, thin


@pytest.mark.parametrize(
    ("make", "rule", "optimizer"), spread([flat_chain, convolutions], RULES, ["sgd", "adam", "local"])
)
def test_what_is_absent_stays_absent_and_what_exists_learns(make, rule, optimizer):
    if rule == "ifa" and make is not flat_chain:
        pytest.skip("needs a chain that keeps shape")
    learner = attach(make(), rule)
    before = state(learner)
    moves = {
        "sgd": lambda: sgd(learner),
        "adam": lambda: torch.optim.Adam(learner.model.parameters(), 0.01, weight_decay=0.01),
        "local": lambda: apical.LocalSGD(learner, 0.05, momentum=0.9, weight_decay=0.01),
    }[optimizer]()
    learn(learner, moves, 12)
    has_feedback = rule not in ("bp", "shallow", "reinforce")
    assert thin(learner) == len(learner.synapses) + has_feedback * (len(learner.synapses) - 1 - (rule == "ifa") * 1)
    after = state(learner)
    last = list(learner.synapses)[-1]
    kept = after[f"{last}.weight_mask"].bool()
    assert (after[f"{last}.weight"][kept] != before[f"{last}.weight"][kept]).all()
    assert all(torch.equal(after[name], before[name]) for name in after if name.endswith("_mask"))


OPTIMIZERS = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_of_torch_moves_what_is_absent(name):
    learner = attach(flat_chain())
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1} if name == "SGD" else {}
    learn(learner, getattr(torch.optim, name)(learner.model.parameters(), lr=0.01, **options), 10)
    assert thin(learner) == 5


class Mixing(torch.optim.Optimizer):
    """Moves every element by the mean gradient of its tensor, as no elementwise optimizer does."""

    def __init__(self, params) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.mean() + 0.01)


@pytest.mark.parametrize("copied", [False, True])
def test_an_optimizer_that_mixes_elements_and_penalties_on_weights_move_nothing_absent(copied):
    learner = attach(flat_chain())
    learner = copy.deepcopy(learner) if copied else learner
    before = state(learner)
    learn(learner, Mixing(learner.model.parameters()), 3)
    assert thin(learner) == 5
    assert not torch.equal(before["4.weight"], learner.synapses["4"].weight)
    optimizer = sgd(learner)
    learner.synapses["4"].weight.sum().backward()
    optimizer.step()
    assert thin(learner) == 5


@pytest.mark.parametrize(
    ("make", "rule", "settings"),
    spread(
        [flat_chain, convolutions],
        RULES,
        [{"momentum": 0.0, "weight_decay": 0.0}, {}, {"nesterov": True}, {"dampening": 0.3}],
    ),
)
def test_local_updates_are_those_of_torch(make, rule, settings):
    if rule == "ifa" and make is not flat_chain:
        pytest.skip("needs a chain that keeps shape")
    settings = {"momentum": 0.9, "weight_decay": 0.01, **settings}
    found = []
    for local in (True, False):
        learner = attach(make(), rule, apical.Connectivity(0.5, 0.7))
        optimizer = apical.LocalSGD(learner, 0.05, **settings) if local else sgd(learner, **settings)
        torch.manual_seed(4)
        learn(learner, optimizer, 3)
        found.append(state(learner))
    equal(*found, 1e-12)


@pytest.mark.parametrize("forth", [0.5, 1.0])
@pytest.mark.parametrize("back", [0.5, 1.0])
def test_hebbian_feedback_is_whole_where_only_weights_are_thinned_and_the_other_way_round(forth, back):
    learner, dense = attach(flat_chain(), "kp", apical.Connectivity(forth, back)), attach(flat_chain(), "kp", None)
    for name, synapse in learner.synapses.items():
        dense.synapses[name].weight.data.copy_(synapse.weight)
        if synapse.feedback is not None:
            dense.synapses[name].feedback = synapse.feedback.detach()
    for one in (learner, dense):
        cross_entropy(one.model(X), Y).mean().backward()
    for name, synapse in learner.synapses.items():
        other = dense.synapses[name]
        assert torch.equal(synapse.weight.grad, other.weight.grad * (synapse.weight_mask if forth < 1 else 1))
        if synapse.feedback is not None:
            mask = synapse.feedback_mask if back < 1 else 1
            assert torch.equal(synapse.feedback.grad, other.feedback.grad * mask)
            assert synapse.feedback.grad.data_ptr() != synapse.weight.grad.data_ptr() or forth == back == 1


@pytest.mark.parametrize("rule", ["dfa", "kp-direct", "wm"])
def test_blocks(rule):
    rule = rule if rule != "wm" else apical.Rule("direct", "mirror")
    learner = attach(flat_chain(), rule, {"": 0.5, "4": 1.0}, at=["3", "5"])
    learn(learner, sgd(learner), 3)
    assert thin(learner) == 4
    whole = attach(flat_chain(), rule, None, at=["3", "5"])
    learner.model.load_state_dict(
        {k: v for k, v in whole.model.state_dict().items() if "mask" not in k}
    )  # Whole weights and feedback, taken as far as connections exist.
    assert thin(learner) == 4
    mask = learner.blocks["5"].feedback_mask
    assert torch.equal(learner.blocks["5"].feedback, whole.blocks["5"].feedback * mask)
    learner.detach()
    assert not any("mask" in name or "feedback" in name for name in learner.model.state_dict())


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class ScaledSynapse(apical.Synapse, Scaled):
    def transmit(self, x, weight, bias, geometry=()):
        return 2 * nn.functional.linear(x, weight, bias)

    def feed_back(self, delta, feedback, shape, geometry=()):
        return 2 * delta @ feedback

    def hebbian(self, x, delta, geometry=()):
        return 2 * delta.T @ x


@pytest.mark.parametrize("local", [False, True])
def test_a_registered_kind(monkeypatch, local):
    monkeypatch.setitem(registry.SYNAPSES, Scaled, ScaledSynapse)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.Tanh(), Scaled(9, 9), nn.Tanh(), Scaled(9, 3)).double()
    learner = attach(net, "kp")
    learn(learner, apical.LocalSGD(learner, 0.05, momentum=0.9) if local else sgd(learner), 5)
    assert thin(learner) == 5


def test_tied_weights_have_one_mask():
    net = flat_chain()
    net[6] = nn.Linear(9, 9).double()
    net[6].weight = net[4].weight
    net.append(nn.Linear(9, 3).double())
    learner = attach(net, "fa")
    assert torch.equal(learner.synapses["4"].weight_mask, learner.synapses["6"].weight_mask)
    assert not torch.equal(learner.synapses["4"].feedback_mask, learner.synapses["6"].feedback_mask)
    near(learner.synapses["4"].weight_mask, 0.5)
    learn(learner, sgd(learner), 3)
    assert thin(learner) == 7


@pytest.mark.parametrize("rule", ["kp", "usf", "np", "kp-direct"])
def test_mixed_precision_checkpointing_and_compiled_code(rule):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = flat_chain()

        def forward(self, x):
            h = self.inner[:3](x)
            return self.inner[3:](h) if rule == "np" else checkpoint(self.inner[3:], h, use_reentrant=False)

    net = Checkpointed().float()
    learner = apical.attach(net, rule, example_input=X.float(), generator=seed(), connectivity=0.5)
    optimizer = sgd(learner)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(net(X.float()), Y).mean()
        loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            learner.adapt(X.float(), Y, cross_entropy)
        optimizer.step()
        optimizer.zero_grad()
    assert thin(learner) == 5


@dynamo
@pytest.mark.parametrize("rule", ["kp", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("usf", "dfa"))])
def test_compiled_networks_learn_as_eager_ones(rule):
    torch.compiler.reset()
    learners = [attach(flat_chain(), rule) for _ in range(2)]
    calls = [learners[0].model, torch.compile(learners[1].model, backend="aot_eager")]
    for _ in range(3):
        for learner, call in zip(learners, calls, strict=True):
            optimizer = torch.optim.SGD(learner.model.parameters(), 0.05)
            cross_entropy(call(X), Y).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.compiler.reset()
    assert thin(learners[1]) == 5
    equal(state(learners[1]), state(learners[0]), 1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_audit_finds_what_it_finds_on_the_whole_network(rule):
    found = [
        apical.audit(attach(flat_chain(), rule, connectivity), X, Y, cross_entropy).transported
        for connectivity in (None, 0.5)
    ]
    assert found[0] == found[1]


def test_alignment_counts_absent_connections_as_zeros():
    learner = attach(flat_chain(), "fa")
    measured = apical.alignment(learner, X, Y, cross_entropy)["4"]
    W, B = learner.synapses["4"].weight.detach(), learner.synapses["4"].feedback
    angle = torch.rad2deg(torch.acos((W * B).sum() / (W.norm() * B.norm())))
    assert measured.matrix_angle == pytest.approx(float(angle), abs=1e-9)
    bp = apical.alignment(attach(flat_chain(), "bp"), X, Y, cross_entropy)
    assert all(one.delta_angle == pytest.approx(0, abs=1e-5) for one in bp.values() if one.delta_angle is not None)
    # The reference is backpropagation on the thinned network: feedback set to W where both exist differs from it.
    assert apical.alignment(attach(flat_chain(), "usf"), X, Y, cross_entropy)["1"].delta_angle > 5


def by_save(learner):
    file = io.BytesIO()
    torch.save(learner.model, file)
    file.seek(0)
    return apical.learner_of(torch.load(file, weights_only=False))


@pytest.mark.parametrize("make", [copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner)), by_save])
@pytest.mark.parametrize("rule", ["kp", "brsf", "np-direct", "dfa"])
def test_copies_go_on_like_the_original(rule, make):
    learner = attach(flat_chain(), rule)
    learn(learner, sgd(learner), 2)
    twin = make(learner)
    assert twin.connectivity == learner.connectivity
    for one in (learner, twin):
        torch.manual_seed(5)
        learn(one, sgd(one), 3)
    assert thin(twin) == 5
    equal(state(twin), state(learner))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("rule", ["kp", "frsf", "wm", "kp-direct"])
def test_a_state_brings_its_masks(rule, assign):
    learner = attach(flat_chain(), rule)
    learn(learner, sgd(learner), 2)
    other = attach(flat_chain(), rule, n=9)
    other.model.load_state_dict(copy.deepcopy(learner.model.state_dict()), assign=assign)
    other.load_state_dict(learner.state_dict())
    equal(state(other), state(learner))
    for one in (learner, other):
        learn(one, sgd(one), 3)
    assert thin(other) == 5
    equal(state(other), state(learner))


def test_a_plain_state_is_thinned_and_a_thinned_one_is_refused_by_a_whole_network():
    learner, plain = attach(flat_chain(), "fa"), flat_chain()
    before = state(learner)
    torch.manual_seed(8)
    nn.init.normal_(plain[4].weight)
    learner.model.load_state_dict(plain.state_dict())
    assert thin(learner) == 5
    assert torch.equal(learner.synapses["4"].weight, plain[4].weight * before["4.weight_mask"])
    assert torch.equal(learner.synapses["4"].feedback, before["4.feedback"])
    with pytest.raises(RuntimeError, match=r"Unexpected.*4\.weight_mask"):
        attach(flat_chain(), "fa", None).model.load_state_dict(learner.model.state_dict())


@pytest.mark.parametrize("rule", ["fa", "kp", "wm"])
def test_feedback_that_is_set_is_thinned_and_the_value_given_is_left_alone(rule):
    synapse = attach(flat_chain(), rule).synapses["4"]
    value = torch.ones_like(synapse.weight)
    synapse.feedback = value
    assert torch.equal(synapse.feedback, synapse.feedback_mask)
    assert value.all()


def test_detach_leaves_thinned_weights_and_nothing_else():
    learner = attach(flat_chain(), "kp")
    learn(learner, sgd(learner), 2)
    weights = {name: s.weight.detach().clone() for name, s in learner.synapses.items()}
    kept = learner.synapses["4"].weight_mask
    plain = learner.detach()
    assert plain.state_dict().keys() == flat_chain().state_dict().keys()
    assert vars(plain[4]).keys() == vars(flat_chain()[4]).keys()
    for name, weight in weights.items():
        assert torch.equal(plain.get_submodule(name).weight, weight)
    # Nothing holds absent connections any more.
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    cross_entropy(plain(X), Y).mean().backward()
    optimizer.step()
    assert plain[4].weight[kept == 0].any()


def test_other_precisions_keep_the_masks():
    learner = attach(flat_chain(), "kp")
    learner.model.float()
    assert learner.synapses["4"].weight_mask.dtype == torch.float32
    learn(learner, sgd(learner), 2, X.float())
    assert thin(learner) == 5


@pytest.mark.parametrize("rule", ["bp", "kp", "dfa", "kp-direct", "usf"])
@pytest.mark.parametrize("local", [False, True])
def test_copies_side_by_side_learn_what_they_would_alone(rule, local):
    singles = [attach(convolutions(), rule, {"": 0.5, "8": 1.0}, n=n).model for n in range(3)]
    replicas = apical.replicate(singles, example_input=X)
    for mine, its in zip(replicas.split(), singles, strict=True):
        equal(mine.state_dict(), its.state_dict())
    nets = [replicas, *singles]
    optimizers = [
        apical.LocalSGD(apical.learner_of(net), 0.05, momentum=0.9)
        if local
        else sgd(apical.learner_of(net), weight_decay=0)
        for net in nets
    ]
    for _ in range(3):
        outputs = replicas(X.expand(3, *X.shape))
        cross_entropy(outputs.flatten(0, 1), Y.repeat(3)).view(3, -1).mean(1).sum().backward()
        for single in singles:
            cross_entropy(single(X), Y).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert thin(apical.learner_of(replicas))
    for mine, its in zip(replicas.split(), singles, strict=True):
        equal(mine.state_dict(), its.state_dict(), 1e-10)


def test_replicas_that_are_attached_draw_masks_of_their_own():
    replicas = apical.replicate(convolutions, 3, example_input=X)
    apical.attach(replicas, "fa", generator=seed(), connectivity=0.5)
    masks = [net[3].weight_mask for net in replicas.split()]
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[1], masks[2])
    different = [attach(flat_chain(), "fa", share).model for share in (0.5, 0.4)]
    with pytest.raises(ValueError, match="network 2 has another connectivity"):
        apical.replicate(different, example_input=X)


def by_hand(net, learner) -> torch.Tensor:
    """The output of the thinned chain, with every mask applied from outside."""
    h = X.flatten(1)
    net.eval()
    for name, layer in net.named_children():
        mask = learner.synapses[name].weight_mask if name in learner.synapses else None
        h = layer(h) if mask is None else F.linear(h, layer.weight.detach() * mask, layer.bias.detach())
    return h.detach()


WRITERS = {
    "reset_parameters": lambda net: [m.reset_parameters() for m in net if isinstance(m, nn.Linear)],
    "copy_": lambda net: [p.copy_(torch.randn_like(p)) for p in net.parameters()],
    "clamp_": lambda net: [p.clamp_(0.01, 0.1) for p in net.parameters()],
    "noise by .data": lambda net: [p.data.add_(torch.randn_like(p)) for p in net.parameters()],
    "another .data": lambda net: [setattr(p, "data", torch.randn_like(p)) for p in net.parameters()],
    "init.orthogonal_": lambda net: [nn.init.orthogonal_(p) for p in net.parameters() if p.dim() == 2],
    "a vector": lambda net: nn.utils.vector_to_parameters(
        1 + torch.rand_like(nn.utils.parameters_to_vector(net.parameters())), net.parameters()
    ),
    "a new parameter": lambda net: [
        setattr(m, "weight", nn.Parameter(torch.randn_like(m.weight))) for m in net if isinstance(m, nn.Linear)
    ],
}


@pytest.mark.parametrize(
    ("writer", "rule", "learns"), spread(WRITERS, ["fa", "kp", "bp", "usf", "dfa", "np"], [True, False])
)
def test_what_is_written_to_absent_connections_by_hand_conducts_at_no_pass(writer, rule, learns):
    net = flat_chain()
    learner = attach(net, rule)
    learn(learner, sgd(learner), 1)
    with torch.no_grad():
        WRITERS[writer](net)
    torch.testing.assert_close(by_hand(net, learner), net(X) if learns else net(X).detach(), rtol=1e-10, atol=1e-12)
    with torch.set_grad_enabled(learns):
        torch.testing.assert_close(net(X).detach(), by_hand(net, learner), rtol=1e-10, atol=1e-12)
    if learns:  # No signal comes by them either.
        thin(learner)
        learn(learner, sgd(learner), 1)
        thin(learner)


def test_masks_changed_by_hand_are_taken_in_or_refused():
    net = flat_chain()
    learner = apical.attach(net, "kp", connectivity=0.5, generator=seed())
    net(X).sum().backward()
    synapse = list(learner.synapses.values())[1]
    synapse.weight_mask = torch.zeros_like(synapse.weight_mask)
    synapse.feedback_mask.zero_()
    net(X).sum().backward()
    assert not synapse.weight.any()
    assert not synapse.feedback.any()
    for name in ("weight_mask", "feedback_mask"):
        with pytest.raises(ValueError, match=rf"{name} has shape .*got \[2, 2\]"):
            setattr(synapse, name, torch.ones(2, 2))


def test_a_pass_between_two_backward_passes_may_mask_and_disturbs_neither():
    for rule in ("bp", "kp", "fa", "frsf", "dfa"):
        net = flat_chain().eval()
        learner = attach(net, rule)
        one, other = net(X), net(X.flip(0))
        cross_entropy(one, Y).sum().backward()
        cross_entropy(other, Y.flip(0)).sum().backward()
        both = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        net.zero_grad()
        (2 * cross_entropy(net(X), Y).sum()).backward()
        equal(both, {name: p.grad for name, p in net.named_parameters() if p.grad is not None}, rtol=1e-10)
        thin(learner)


def test_a_detached_network_has_no_absent_connection_that_conducts():
    net = flat_chain()
    learner = attach(net, "fa")
    net[4].reset_parameters()
    mask = net[4].weight_mask.clone()
    learner.detach()
    assert not net[4].weight[mask == 0].any()


def test_feedback_written_by_hand_stays_absent_in_blocks_too():
    net = flat_chain()
    learner = attach(net, "dfa", at=["3"])
    learner.blocks["3"].feedback.normal_()
    cross_entropy(net(X), Y).mean().backward()
    assert thin(learner) == 5


def test_stand_in_weights_exported_code_and_inference_mode():
    net = flat_chain().eval()
    learner = attach(net, "fa")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1)
    with torch.inference_mode():
        torch.testing.assert_close(net(X), by_hand(net, learner), rtol=1e-10, atol=1e-12)
    own = {name: p.detach() for name, p in net.named_parameters()}
    two = {name: torch.stack([p, p + 0.1]) for name, p in own.items()}
    with torch.no_grad():
        both = torch.vmap(lambda some: torch.func.functional_call(net, some, (X,)))(two)
        for number, outputs in enumerate(both):
            alone = torch.func.functional_call(net, {name: p + 0.1 * number for name, p in own.items()}, (X,))
            torch.testing.assert_close(outputs, alone, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.export.export(net, (X,)).module()(X), net(X), rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("graph", [True, False])
def test_absent_connections_conduct_under_no_function_transform(graph):
    net, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(2, 6, generator=seed())
    synapse = apical.attach(net, "kp", connectivity=0.5, generator=seed()).synapses["0"]
    with torch.no_grad():
        synapse.weight.add_(1.0)
        plain = F.linear(x, synapse.weight * synapse.weight_mask, synapse.bias)
    with torch.set_grad_enabled(graph):
        torch.testing.assert_close(torch.func.vmap(synapse)(x), plain)
        torch.testing.assert_close(torch.func.jvp(synapse, (x,), (x,))[0], plain)
