"""Rules with a phase of their own, under everything a training loop may do to them."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import socket
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import apical
from apical.losses import cross_entropy
from small import dynamo, exactly

RULES = ("wm", "np", "np-direct", "sg", "sg-direct", "reinforce", "mirror-direct", "np-ridge", "mixed")
X = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(5))
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(6))


def rule_of(name: str):
    if name == "mirror-direct":
        return apical.Rule("direct", "mirror")
    if name == "np-ridge":
        return {"": "np", "head": apical.rule("np", solver="ridge")}
    if name == "mixed":
        return {"": "wm", "block.conv2": "dfa", "head": "np"}
    return name


class Block(nn.Module):
    """Residual, normalized after its ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )

    def forward(self, x):
        return torch.relu_(x + self.conv2(self.bn(torch.relu(self.conv1(x)))))


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.block = Block()
        self.drop = nn.Dropout(0.25)
        self.head = nn.Linear(36, 3)
        self.checkpointed = False

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x)))
        h = checkpoint(self.block, h, use_reentrant=False) if self.checkpointed else self.block(h)
        return self.head(self.drop(h.flatten(1)))


def attach(model: nn.Module, rule: str, x=X, seed: int = 1, **options) -> apical.Learner:
    return apical.attach(
        model, rule_of(rule), example_input=x[:2], generator=torch.Generator().manual_seed(seed), **options
    )


def learn(model, learner, steps: int = 1, x=X, y=Y, optimizer=None, call=None) -> None:
    for _ in range(steps):
        cross_entropy((model if call is None else call)(x), y).mean().backward()
        learner.adapt(x, y, cross_entropy)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()


def feedback(learner) -> dict[str, torch.Tensor]:
    found = {name: synapse.feedback for name, synapse in learner.synapses.items()}
    found |= {name: block.feedback for name, block in learner.blocks.items()}
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}


def everything(model, learner) -> dict[str, torch.Tensor]:
    grads = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**{k: v.clone() for k, v in model.state_dict().items()}, **grads}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert float((a[name] - b[name]).norm()) <= tolerance * float(b[name].norm()), name


@pytest.mark.parametrize("rule", RULES)
def test_training_lowers_the_loss(rule):
    net = Net()
    learner = attach(net, rule)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    before = float(cross_entropy(net.eval()(X), Y).mean().detach())
    learn(net.train(), learner, 60, optimizer=optimizer)
    assert float(cross_entropy(net.eval()(X), Y).mean().detach()) < 0.8 * before


# Copies, checkpoints, memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("moment", ["before", "after backward", "after adapt"])
@pytest.mark.parametrize("rule", RULES)
def test_copies_go_on_alike_and_apart(rule, moment, how):
    net = Net()
    learner = attach(net, rule)
    learn(net, learner)
    net.zero_grad()
    if moment != "before":
        cross_entropy(net(X), Y).mean().backward()
    if moment == "after adapt":
        learner.adapt(X, Y, cross_entropy)
    other = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    its = apical.learner_of(other)
    for model, own in ((net, learner), (other, its)):
        torch.manual_seed(7)
        model.zero_grad()
        learn(model, own)
    same(everything(net, learner), everything(other, its))
    untouched = feedback(its)
    learn(net, learner)
    same(untouched, feedback(its))


@pytest.mark.parametrize("rule", RULES)
def test_a_checkpoint_goes_on_bit_identically(rule):
    net = Net()
    learner = attach(net, rule)
    learn(net, learner)
    file = io.BytesIO()
    torch.save((net.state_dict(), learner.state_dict()), file)
    file.seek(0)
    other = Net(3)
    its = attach(other, rule, seed=9)
    model_state, own_state = torch.load(file, weights_only=True)
    other.load_state_dict(model_state)
    its.load_state_dict(own_state)
    for model, own in ((net, learner), (other, its)):
        torch.manual_seed(7)
        model.zero_grad()
        learn(model, own, 2)
    same(everything(net, learner), everything(other, its))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_of_a_batch_is_kept_after_its_phase_and_detach_leaves_the_plain_model(rule):
    net = Net()
    plain = {name: type(module) for name, module in net.named_modules()}
    keys = set(net.state_dict())
    learner = attach(net, rule)
    x = X.clone()
    seen = weakref.ref(x)
    learn(net, learner, x=x)
    del x
    gc.collect()
    assert seen() is None
    learner.detach()
    assert {name: type(module) for name, module in net.named_modules()} == plain
    assert set(net.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any("feedback" in vars(m) or m._buffers.get("feedback") is not None for m in net.modules())


@pytest.mark.parametrize("rule", RULES)
def test_measuring_between_steps_leaves_no_trace(rule):
    def run(measure):
        net = Net()
        learner = attach(net, rule)
        torch.manual_seed(2)
        for _ in range(2):
            cross_entropy(net(X), Y).mean().backward()
            if measure:
                apical.alignment(learner, X, Y, cross_entropy)
                apical.audit(learner, X, Y, cross_entropy)
            learner.adapt(X, Y, cross_entropy)
        return everything(net, learner)

    same(run(True), run(False))


# What a loop may do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["copy of the batch", "checkpointed", "all frozen", "auxiliary loss", "no backward"])
def test_a_clean_pass_of_its_own_gives_the_same_phase(rule, way):
    if rule == "reinforce" and way in ("all frozen", "auxiliary loss", "no backward"):
        pytest.skip("learns from the loop's own loss")
    if rule == "mirror-direct" and way == "checkpointed":
        pytest.skip("PyTorch updates running statistics again when it recomputes a block, and this mirror reads them")

    def run(odd):
        net = Net().double()
        net.drop.p = 0.0  # Masks of two passes would differ.
        learner = attach(net, rule, X.double())
        x = X.double()
        net.checkpointed = odd and way == "checkpointed"
        if odd and way == "all frozen":
            net.requires_grad_(False)
            net(x)
        else:
            output = net(x)
            losses = cross_entropy(output, Y)
            if odd and way == "auxiliary loss":
                (losses.mean() + output.square().mean()).backward()
            elif not (odd and way == "no backward"):
                losses.mean().backward()
        learner.adapt(x.clone() if odd and way == "copy of the batch" else x, Y, cross_entropy)
        return feedback(learner)

    close(run(True), run(False), 1e-9)


@dynamo
@pytest.mark.parametrize("way", ["copy of the batch", "compiled", "compiled, with dropout"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_reinforce_scales_with_the_loops_loss_in_a_clean_pass_of_its_own(way, reduce):
    grads = []
    for odd in (False, True):
        torch.compiler.reset()
        net = Net().double()
        net.drop.p = 0.25 if "dropout" in way else 0.0
        learner = attach(net, "reinforce", X.double())
        call = torch.compile(net, backend="eager") if odd and "compiled" in way else net
        torch.manual_seed(1)
        x = X.double()
        getattr(cross_entropy(call(x), Y), reduce)().backward()
        learner.adapt(x.clone() if odd else x, Y, cross_entropy)
        grads.append(net.stem.weight.grad)
    ratio = float(grads[1].norm() / grads[0].norm())
    assert 0.3 < ratio < 3 if "dropout" in way else abs(ratio - 1) < 1e-6


class Activated(nn.BatchNorm1d):
    """A normalization with its activation inside."""

    def forward(self, x):
        return torch.tanh(2 + super().forward(x))


class Spelled(nn.BatchNorm1d):
    """The same, spelled out."""

    def forward(self, x):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        own = self.training or self.running_mean is None
        mean, variance = (
            (self.running_mean, self.running_var) if not self.training or self.track_running_stats else (None,) * 2
        )
        y = nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, own, self.momentum, self.eps)
        return torch.tanh(2 + y)


def patched(*args, **kwargs):
    """The same, put on one layer from outside."""
    norm = nn.BatchNorm1d(*args, **kwargs)
    norm.forward = lambda x: torch.tanh(2 + nn.BatchNorm1d.forward(norm, x))
    return norm


class After(nn.Module):
    def forward(self, x):
        return torch.tanh(2 + x)


@pytest.mark.parametrize("rule", ["np", "np-direct", "sg", "reinforce"])
@pytest.mark.parametrize("kind", [Activated, Spelled, patched])
@pytest.mark.parametrize("tracked", [True, False])
def test_a_normalization_that_does_more_learns_as_its_parts_do(rule, kind, tracked):
    x = X[:, 0].flatten(1)

    def run(make):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(36, 6), *make(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        learner = attach(net, rule, x.double())
        forwards = [module.forward for module in net]
        for _ in range(2):
            cross_entropy(net(x.double()), Y).mean().backward()
            learner.adapt(x.double(), Y, cross_entropy)
        assert [module.forward for module in net] == forwards
        return [*everything(net, learner).values()]

    apart = run(lambda: [nn.BatchNorm1d(6, track_running_stats=tracked), After()])
    for found, expected in zip(run(lambda: [kind(6, track_running_stats=tracked)]), apart, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["peek before", "peek after", "by name"])
@pytest.mark.parametrize("how", ["torch", "local", "accumulated"])
def test_reinforce_keeps_to_the_loops_loss_whatever_else_the_loop_computes(how, way):
    def run(odd):
        net = Net().double()
        net.drop.p = 0.0 if way == "by name" else 0.25  # A pass of its own has masks of its own.
        learner = attach(net, "reinforce", X.double())
        optimizer = apical.LocalSGD(learner, 0.1) if how == "local" else torch.optim.SGD(net.parameters(), 0.1)
        x = X.double()
        for step in range(3):
            torch.manual_seed(step)
            output = net(x)
            if odd and way == "peek before":
                net(x).argmax(1)
            cross_entropy(output, Y).mean().backward()
            if odd and way == "peek after":
                net(x).argmax(1)
            learner.adapt({"x": x} if odd and way == "by name" else x, Y, cross_entropy)
            if how != "accumulated":
                optimizer.step()
                optimizer.zero_grad()
        optimizer.step()
        return weights(net)

    close(run(True), run(False), 1e-9)


@dynamo
def test_reinforce_says_when_nothing_tells_the_scale_of_the_loops_loss():
    net = Net()
    learner = attach(net, "reinforce")
    with pytest.raises(RuntimeError, match=r"no backward pass.*call adapt between backward"):
        learner.adapt(X, Y, cross_entropy)
    compiled = torch.compile(net, backend="eager")
    for zero in (lambda: net.zero_grad(), lambda: net.zero_grad(set_to_none=False)):
        learn(net, learner, call=compiled)
        zero()
    learn(net, learner, call=compiled)
    before = everything(net, learner)
    cross_entropy(compiled(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match=r"'stem.weight' still has the gradient of an earlier batch.*zero_grad"):
        learner.adapt(X, Y, cross_entropy)
    assert torch.equal(net.stem.weight.grad, before["stem.weight.grad"])


@pytest.mark.parametrize("rule", ["np", "reinforce"])
def test_a_pass_from_before_a_step_is_not_compared_with_one_after_it(rule):
    net = Net().double()
    net.drop.p = 0.0
    learner = attach(net, rule, X.double())
    optimizer = torch.optim.SGD(net.parameters(), 1.0)
    cross_entropy(net(X.double()), Y).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    other = copy.deepcopy(net)
    its = apical.learner_of(other)
    if rule == "reinforce":
        with pytest.raises(RuntimeError, match="no backward pass"):
            learner.adapt(X.double(), Y, cross_entropy)
        return
    for own in (learner, its):
        own.adapt(X.double(), Y, cross_entropy)
    same(feedback(learner), feedback(its))


class Bypass(nn.Module):
    """Skips lead around both inner synapses to the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.a, self.o = nn.Linear(72, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.double()

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x.flatten(1))))
        h = h + self.a(torch.sigmoid(h))
        return h + self.o(torch.sigmoid(h))


@pytest.mark.parametrize("head", ["reinforce", "bp", "dfa"])
@pytest.mark.parametrize("optimizer", ["torch", "local"])
@pytest.mark.parametrize("own", [False, True], ids=["the loop's pass", "a pass of its own"])
def test_reinforce_adds_to_the_error_that_a_skip_brings_around_a_cut(head, optimizer, own, monkeypatch):
    """With exact estimates both together are backpropagation."""
    monkeypatch.setattr("apical.phases.phase.estimates", exactly)
    x, plain, net = X.double(), Bypass(), Bypass()
    learner = apical.attach(net, {"": "reinforce", "o": head}, example_input=x)
    if head == "dfa":
        learner.synapses["o"].feedback = net.o.weight.detach()
    moves = apical.LocalSGD(learner, 1.0) if optimizer == "local" else torch.optim.SGD(net.parameters(), 1.0)
    cross_entropy(net(x), Y).mean().backward()
    learner.adapt({"x": x} if own else x, Y, cross_entropy)
    moves.step()
    cross_entropy(plain(x), Y).mean().backward()
    torch.optim.SGD(plain.parameters(), 1.0).step()
    close(weights(net), weights(plain), 1e-9)


def test_reinforce_refuses_another_batch_than_the_loops():
    net = Net()
    learner = attach(net, "reinforce")
    cross_entropy(net(X), Y).mean().backward()
    with pytest.raises(RuntimeError, match="batch of the last backward pass"):
        learner.adapt(-X, Y.flip(0), cross_entropy)


def test_reinforce_says_that_the_loss_is_another_one():
    net = Net()
    learner = attach(net, "reinforce")
    output = net(X)
    (cross_entropy(output, Y).mean() + output.square().mean()).backward()
    with pytest.raises(RuntimeError, match="criterion"):
        learner.adapt(X, Y, cross_entropy)


@pytest.mark.parametrize("rule", RULES)
def test_autocast_learns_nearly_the_same(rule):
    def run(half):
        net = Net()
        options = {"mixed": "wm"}.get(rule, rule)
        learner = attach(net, options)
        torch.manual_seed(1)
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = cross_entropy(net(X), Y)
            losses.mean().backward()
            learner.adapt(X, Y, cross_entropy)
        assert all(bool(tensor.isfinite().all()) for tensor in everything(net, learner).values())
        return feedback(learner)

    found, expected = run(True), run(False)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    if rule in ("wm", "sg", "sg-direct", "mirror-direct"):
        close(found, expected, 0.05)


@dynamo
@pytest.mark.parametrize("rule", ["wm", "np", "sg-direct", "reinforce"])
def test_compiled_models_run_their_phase(rule):
    net = Net()
    learner = attach(net, rule)
    compiled = torch.compile(net, backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    before = feedback(learner)
    learn(net, learner, 3, optimizer=optimizer, call=compiled)
    for name, value in feedback(learner).items():
        assert not torch.equal(value, before[name]), name


class Shared(nn.Module):
    """One layer used twice, on [N, T, F], in a model that takes a dict of inputs and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer, self.head = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, ids, scale):
        h = self.token(ids) * scale
        return Output(self.head(torch.tanh(self.layer(torch.tanh(self.layer(h)))).mean(1)), h)


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize("rule", ["wm", "np", "sg", "reinforce"])
def test_layers_used_twice_inputs_by_name_and_structured_outputs(rule):
    torch.manual_seed(0)
    net = Shared().double()
    inputs = {"ids": torch.randint(7, (6, 4)), "scale": torch.tensor(1.5, dtype=torch.float64)}
    learner = apical.attach(net, rule, example_input=inputs, output="logits")
    before = feedback(learner)
    for _ in range(3):
        cross_entropy(net(**inputs).logits, Y[:6]).mean().backward()
        learner.adapt(inputs, Y[:6], cross_entropy)
    assert all(not torch.equal(value, before[name]) for name, value in feedback(learner).items())
    assert net.layer.weight.grad is not None


class Branches(nn.Module):
    """A layer besides the main road, taken while training, by batches with a positive first value, or never."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.aux, self.way = nn.Linear(72, 8), nn.Linear(8, 3), nn.Linear(8, 3), way

    def forward(self, x):
        h = torch.tanh(self.a(x.flatten(1)))
        taken = {"training": self.training, "routed": bool(x.flatten()[0] > 0), "never": False}[self.way]
        return self.b(h) + self.aux(h) if taken else self.b(h)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("way", ["training", "routed", "never"])
@pytest.mark.parametrize("rule", ["fa", "kp", "wm", "np", "np-ridge", "sg", "reinforce"])
def test_layers_that_not_every_pass_reaches_learn_when_one_does(rule, way, shown):
    net = Branches(way)
    chosen = {"": apical.rule("np", solver="ridge")} if rule == "np-ridge" else rule
    learner = apical.attach(net, chosen, example_input=-X.abs() if shown else None)
    before = feedback(learner)
    learn(net, learner, x=-X.abs())
    assert (net.aux.weight.grad is None) == (way != "training")
    assert torch.equal(learner.synapses["aux"].weight, net.aux.weight)
    reached = {"training": {"b", "aux"}, "routed": {"b"}, "never": {"b"}}[way]
    for _ in range(2):
        if rule in ("wm", "np", "np-ridge", "sg"):
            assert {n for n, value in feedback(learner).items() if not torch.equal(value, before[n])} == reached
        before = feedback(learner)
        learn(net, learner, x=X.abs())
        reached = {"b"} if way == "never" else {"b", "aux"}
    assert (net.aux.weight.grad is None) == (way == "never")
    apical.alignment(learner, X, Y, cross_entropy), apical.audit(learner, X, Y, cross_entropy)


@pytest.mark.parametrize("rule", ["wm", "np"])
def test_a_resumed_run_knows_which_layers_have_been_reached(rule):
    """A mirror needs no data: once it has met a layer, it goes on there, whatever the batch."""
    net = Branches("routed")
    learner = apical.attach(net, rule, generator=torch.Generator().manual_seed(1))
    learn(net, learner, x=X.abs())
    file = io.BytesIO()
    torch.save((net.state_dict(), learner.state_dict()), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = Branches("routed")
    resumed = apical.attach(again, rule)
    again.load_state_dict(state[0]), resumed.load_state_dict(state[1])
    before = feedback(resumed)["aux"]
    learn(net, learner, x=-X.abs()), learn(again, resumed, x=-X.abs())
    same(feedback(resumed), feedback(learner))
    assert torch.equal(feedback(resumed)["aux"], before) == (rule == "np")


class Named(nn.Module):
    """Layers called by name, or by position."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(72, 9), nn.ConvTranspose1d(1, 2, 2, stride=2), nn.Linear(38, 3)
        self.named = named

    def forward(self, x):
        x = x.flatten(1)
        h = torch.tanh(self.a(input=x) if self.named else self.a(x)).unsqueeze(1)
        g = self.b(output_size=[19], input=h) if self.named else self.b(h, [19])
        return self.head(input=torch.tanh(g.flatten(1))) if self.named else self.head(torch.tanh(g.flatten(1)))


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("rule", ["fa", "dfa", "wm", "np", "np-direct", "sg", "reinforce"])
def test_layers_called_by_name_learn_as_those_called_by_position(rule, shown):
    shown = shown or apical.rule(rule).direct
    found = []
    for net in (Named(False), Named(True)):
        noise = apical.NoisyActivations(net, 0.1)
        learner = apical.attach(
            net, rule, example_input=X if shown else None, generator=torch.Generator().manual_seed(1)
        )
        torch.manual_seed(2)
        learn(net, learner, 2)
        measured = apical.alignment(learner, X, Y, cross_entropy)
        found.append((everything(net, learner), torch.get_rng_state(), measured))
        noise.remove()
    same(found[1][0], found[0][0])
    assert torch.equal(found[1][1], found[0][1])
    assert found[1][2] == found[0][2]
    assert "a.feedback" not in found[1][0]


def test_normalizations_called_by_name_are_recorded():
    class Net(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](input=self[0](x.flatten(1))))

    net = Net(nn.Linear(72, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    learner = apical.attach(net, "np")
    net(X).sum().backward()
    (found,) = learner.phases.recorder.newest.conditions.normalized[net[1]]
    torch.testing.assert_close(found.mean, net[0](X.flatten(1)).mean(0))


@pytest.mark.parametrize("rule", ["np-direct", "sg-direct", "mirror-direct"])
def test_taps_at_blocks_learn(rule):
    net = Net()
    learner = apical.attach(net, rule_of(rule), example_input=X[:2], at=["norm", "block"])
    before = feedback(learner)
    assert list(learner.blocks) == ["norm", "block"]
    learn(net, learner, 2)
    changed = {name for name, value in feedback(learner).items() if not torch.equal(value, before[name])}
    # Inside a block the signal goes layer by layer; no signal leaves what stands right behind a cut.
    assert {"norm", "block"} <= changed
    assert net.stem.weight.grad is not None


@pytest.mark.parametrize("rule", [*RULES, "replicas"])
def test_an_empty_batch_teaches_nothing(rule):
    """Neither feedback nor weights move, and the next batch finds all in order."""
    if rule == "replicas":
        net = apical.replicate(nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3)), 2)
        x, y = torch.stack([X, X]), torch.stack([Y, Y])
        learner = apical.attach(net, "np", example_input=x)
    else:
        net, x, y = Net().eval(), X, Y
        learner = attach(net, rule)
    before = feedback(learner)
    for n in (0, 5):
        batch = (x[:, :n], y[:, :n]) if rule == "replicas" else (x[:n], y[:n])
        cross_entropy(net(batch[0]).flatten(0, -2), batch[1].flatten()).sum().backward()
        learner.adapt(*batch, cross_entropy)
        assert any(bool(p.grad.any()) for p in net.parameters() if p.grad is not None) == (n > 0)
        if n == 0:
            same(feedback(learner), before)
            net.zero_grad()
    assert learner.adapted == 2


@pytest.mark.parametrize("optimizer", ["torch", "local"])
@pytest.mark.parametrize("pair", [("np", "kp"), ("np-direct", "kp-direct")])
def test_nothing_that_an_optimizer_holds_moves_during_warmup(pair, optimizer):
    net = Net().double()
    learner = apical.attach(net, {"": apical.rule(pair[0], warmup=2), "head": pair[1]}, example_input=X.double())
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    moves = (
        apical.LocalSGD(learner, **options) if optimizer == "local" else torch.optim.SGD(net.parameters(), **options)
    )
    before = {name: value.clone() for name, value in weights(net).items()}
    for step in range(3):
        assert "head.feedback" in before
        learn(net, learner, x=X.double(), optimizer=moves)
        assert [name for name, value in weights(net).items() if torch.equal(value, before[name]) != (step < 2)] == []


def test_noisy_activations_and_inputs():
    net = Net()
    clean = net.eval()(X)
    noise = apical.NoisyActivations(net, 0.5)
    learner = attach(net, "np")
    assert torch.equal(net(X), clean)
    assert not torch.equal(net.train()(X), net(X))
    learn(net, learner, 3)
    noise.remove()
    learner.detach()
    assert not any(m._forward_pre_hooks for m in net.modules())
    noisy = apical.NoisyInput(2.0)
    assert torch.equal(noisy.eval()(X), X)
    assert float((noisy.train()(X) - X).std()) == pytest.approx(2.0, rel=0.15)
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="sd must be a positive number"):
            apical.NoisyInput(wrong)
        with pytest.raises(ValueError, match="sd must be a positive number"):
            apical.NoisyActivations(net, wrong)


# Audit ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_audit_sees_through_the_phase(rule):
    net = Net()
    report = apical.audit(attach(net, rule), X, Y, cross_entropy)
    synapses = {name: report.transported[name] for name in ("stem", "block.conv1", "block.conv2", "head")}
    assert set(synapses.values()) == ({"nothing", "weights"} if rule.startswith("sg") else {"nothing"})
    scalar = rule.startswith(("np", "reinforce")) or rule == "mixed"
    assert bool(report.broadcast) == scalar
    assert ("one scalar per sample" in str(report)) == scalar


@dataclass(frozen=True)
class Thief(apical.Mirror):
    """A mirror that looks at the weights of one layer."""

    name: ClassVar[str] = "thief"
    victim: str = "head"

    def adapt(self, phase):
        super().adapt(phase)
        for site in phase.sites:
            if site.name == self.victim:
                site.feedback.add_(site.owner.weight.detach(), alpha=0.01)


@pytest.mark.parametrize("victim", ["block.conv1", "block.conv2", "head"])
def test_the_audit_catches_a_transport_inside_a_phase(victim):
    net = Net()
    learner = apical.attach(net, apical.Rule("layer-wise", Thief(victim=victim)), example_input=X[:2])
    report = apical.audit(learner, X, Y, cross_entropy)
    assert [name for name, kind in report.transported.items() if kind == "weights"] == [victim]


# A rule per module ------------------------------------------------------------------------------------------------------


def test_each_layer_takes_the_rule_of_the_nearest_module_named():
    net = Net()
    learner = apical.attach(net, {"": "kp", "block": "wm", "block.conv2": "fa", "head": "bp"}, example_input=X)
    assert {name: rule.name for name, rule in learner.rules.items()} == {
        "stem": "kp", "block.conv1": "wm", "block.conv2": "fa", "head": "bp",
    }  # fmt: skip
    with pytest.raises(ValueError, match="different rules"):
        _ = learner.rule
    report = apical.audit(learner, X, Y, cross_entropy)
    assert [name for name, kind in report.transported.items() if kind == "weights"] == ["head"]


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        ({"": "fa", "hed": "wm"}, {}, "'hed', where the model has no layer"),
        ({"head": "fa"}, {}, r"nothing about 'stem', 'block.conv1', 'block.conv2'; .* add '': "),
        ({"": "fa", "norm": "wm"}, {}, "'norm', where the model has no layer that learns"),
        ({"": "fa", "head": "ifa"}, {"example_input": X}, "can't be mixed"),
        ({"": "fa", "head": "dfa"}, {}, "'dfa' needs example_input"),
        ({"": "dfa", "head": "kp-direct"}, {"example_input": X, "at": ["block"]}, "at= goes with one rule"),
        ({"": "fa", "head": "wmm"}, {}, "unknown rule 'wmm'; did you mean 'wm'"),
        ({}, {}, "nothing about"),
    ],
)
def test_bad_mappings_are_refused_and_the_model_stays_plain(rule, options, says):
    net = Net()
    kinds, keys = [type(m) for m in net.modules()], list(net.state_dict())
    with pytest.raises(ValueError, match=says):
        apical.attach(net, rule, **options)
    assert [type(m) for m in net.modules()] == kinds
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize(
    ("pathway", "plasticity", "says"),
    [
        ("indirect", "mirror", "no weights to mirror"),
        ("indirect", "perturbation", "no estimate of a gradient"),
        ("scalar", "fixed", "no feedback weights"),
    ],
)
def test_pairs_without_meaning(pathway, plasticity, says):
    with pytest.raises(ValueError, match=says):
        apical.Rule(pathway, plasticity)


# Two processes ----------------------------------------------------------------------------------------------------------


def train_on_half(rank: int, port: int, files) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for rule in RULES:
        net = Net()
        learner = attach(net, rule)
        # Buffers are not broadcast, so that equal feedback is adapt's doing.
        ranks = DistributedDataParallel(net, broadcast_buffers=False, find_unused_parameters=rule == "reinforce")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
        half = slice(6 * rank, 6 * rank + 6)
        drawn = []
        for _ in range(3):
            torch.manual_seed(rank)
            learn(net, learner, x=X[half], y=Y[half], call=ranks)
            drawn.append(everything(net, learner)["head.weight.grad"])
            optimizer.step()
            optimizer.zero_grad()
        state = {k: v for k, v in net.state_dict().items() if "running" not in k}
        found[rule] = {k: v.clone() for k, v in state.items()}
        learner.detach()
    torch.save(found, files[rank])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    files = [tmp_path_factory.mktemp("ranks") / f"{rank}.pt" for rank in range(2)]
    mp.spawn(train_on_half, args=(port, files), nprocs=2)
    return [torch.load(file, weights_only=True) for file in files]


@pytest.mark.parametrize("rule", RULES)
def test_all_ranks_end_with_the_same_weights_and_feedback(rule, ranks):
    first, second = (found[rule] for found in ranks)
    same(first, second)


def test_ranks_draw_noise_of_their_own(monkeypatch):
    from apical.phases.phase import Phase

    net = Net()
    learner = attach(net, "wm")
    draws = []
    for rank in range(2):
        monkeypatch.setattr("apical.distributed.together", lambda: True)
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        learner.generator.manual_seed(0)
        draws.append(torch.rand(3, generator=Phase(learner, X, Y, cross_entropy).generator))
    assert not torch.equal(*draws)


@pytest.mark.parametrize("rule", ["sg", "np"])
def test_a_gradient_that_somebody_has_kept_stays_as_it_was(rule):
    """The regression writes its residual to the signal's own memory, but only where nobody else holds it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    learner = apical.attach(net, rule)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    kept = []

    def keep(module, args, h):
        if h.requires_grad:
            h.register_hook(kept.append)

    for layer in (net[1], net[3]):
        layer.register_forward_hook(keep)
    apical.losses.cross_entropy(net(x), y).mean().backward()
    before = [gradient.clone() for gradient in kept]
    assert len(before) == 2
    learner.adapt(x, y, apical.losses.cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(kept[:2], before, strict=True))
