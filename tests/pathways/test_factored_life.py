"""Whatever direct feedback is made of: what a network goes through keeps it right, and what makes no sense is refused."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import apical
from apical.cuda_graphs.step import Captured
from apical.measures.tensors import angle
from apical.training.options import rule_of
from comparison import equal
from cuda_graphs.emulated import Emulated
from learning import attach, gradients
from networks import IMAGES, Y, dynamo, seed

OPTIONS = [
    {"positions": "same"},
    {"positions": (2, 4), "rank": 2},
    {"positions": "same", "shared": True, "rank": 2},
    {"seeded": True},
]
CRITERION = nn.CrossEntropyLoss(reduction="none")


def network(n: int = 0) -> nn.Sequential:
    torch.manual_seed(n)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 7),
        nn.Tanh(),
        nn.Linear(7, 3),
    )


def made(options, rule: str = "dfa", n: int = 1, **more) -> nn.Sequential:
    model = network()
    attach(model, apical.rule(rule, **options), IMAGES, n=n, **more)
    return model


@pytest.fixture(params=OPTIONS, ids=str)
def options(request):
    return request.param


def test_a_state_dict_a_copy_and_a_pickle_hold_what_signals_are_made_of(options):
    model, other = made(options), made(options, n=2)
    expected = gradients(model, IMAGES)
    assert not torch.equal(gradients(other, IMAGES)["0.weight"], expected["0.weight"])
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    for one in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        equal(gradients(one, IMAGES), expected, rtol=0, atol=0)
    model.load_state_dict(network(3).state_dict())  # A plain one, which has no feedback.
    plain = apical.learner_of(other).detach()
    assert not any("feedback" in name for name in plain.state_dict())
    assert type(plain[3]) is nn.Conv2d
    size = sum(t.numel() for n, t in network().state_dict().items())
    if "rank" in options:
        assert len(file.getvalue()) < 8 * size + 40_000  # Once in the file, though every place names it.


def test_it_is_audited_and_measured(options):
    model = made(options)
    learner = apical.learner_of(model)
    assert apical.audit(learner, IMAGES, Y, CRITERION).summary == "normalization scale"
    found = apical.alignment(learner, IMAGES, Y, CRITERION)
    assert found["0"].delta_angle == pytest.approx(90, abs=40)
    head = learner.synapses["10"]
    P = head._buffers.get("feedback_projection")
    D = head.feedback if P is None else P @ head.feedback
    assert found["10"].matrix_angle == pytest.approx(angle(head.weight, D), abs=1e-3)


def test_local_sgd_and_channels_last_and_autocast(options):
    model, local, turned, cast = (made(options) for _ in range(4))
    expected = gradients(model, IMAGES)
    optimizer = apical.LocalSGD(apical.learner_of(local), lr=0.1)
    before = [p.detach().clone() for p in local.parameters()]
    nn.functional.cross_entropy(local(IMAGES), Y).backward()
    optimizer.step()
    for p, was, g in zip(local.parameters(), before, expected.values(), strict=True):
        torch.testing.assert_close(p, was - 0.1 * g)
    turned.to(memory_format=torch.channels_last)
    equal(gradients(turned, IMAGES.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = gradients(cast, IMAGES)
    for name, g in expected.items():
        assert nn.functional.cosine_similarity(coarse[name].flatten(), g.flatten(), 0) > 0.98


@dynamo
def test_compiled_and_exported_as_one_graph(options):
    torch.compiler.reset()
    model, eager = made(options), made(options)
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    equal(gradients(model, IMAGES, call=call), gradients(eager, IMAGES))
    torch.compiler.reset()
    exported = torch.export.export(made(options), (IMAGES,)).module()
    got, expected = gradients(exported, IMAGES), gradients(made(options), IMAGES)
    equal({n: got[n] for n in expected}, expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_samples_by_function_transforms(options):
    model = made(options).eval()
    expected = gradients(model, IMAGES)

    def loss(parameters, x, y):
        return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    own = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(dict(model.named_parameters()), IMAGES, Y)
    equal({name: g.mean(0) for name, g in own.items()}, expected, rtol=1e-4, atol=1e-6)


def test_a_captured_step_is_the_step_itself(options):
    def loop(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step(x, y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return step

    one, other = made(options), made(options)
    graph, step = Captured(loop(one), (IMAGES, Y), Emulated()), loop(other)
    for n in range(20):
        x = torch.randn(8, 2, 6, 6, generator=seed(n))
        assert torch.equal(graph(x, Y), step(x, Y).detach())
    assert graph.replays
    equal(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
def test_each_copy_side_by_side_is_as_it_would_be_alone(options, rule):
    if rule == "kp-direct" and not {"shared", "seeded"}.isdisjoint(options):
        return

    def chain(n: int) -> nn.Sequential:
        torch.manual_seed(n)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)
        ).double()

    x = torch.randn(2, 8, 2, 6, 6, generator=seed(3), dtype=torch.float64)
    singles = [chain(n) for n in (0, 1)]
    for n, single in enumerate(singles):
        apical.attach(single, apical.rule(rule, **options), example_input=x[0], generator=seed(10 + n))
    replicas = apical.replicate(singles, example_input=x[0])
    optimizer = torch.optim.SGD(replicas.parameters(), lr=0.1)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in singles]
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(replicas(x).flatten(0, 1), Y.repeat(2), reduction="none").view(2, 8).mean(
            1
        ).sum().backward()
        optimizer.step()
        for n, (single, own) in enumerate(zip(singles, optimizers, strict=True)):
            own.zero_grad()
            nn.functional.cross_entropy(single(x[n]), Y).backward()
            own.step()
    for ours, theirs in zip(replicas.states(), singles, strict=True):
        equal(ours, theirs.state_dict(), rtol=1e-9, atol=1e-12)


def test_layers_that_change_keep_what_they_have_in_common(options):
    model = made(options)
    learner = apical.learner_of(model)
    before = {name: s.feedback for name, s in learner.synapses.items()}
    model[8] = nn.Linear(216, 7)
    learner.refresh()
    for name, synapse in learner.synapses.items():
        if before[name] is not None and name != "8":
            assert torch.equal(synapse.feedback, before[name])
    held = [s._buffers.get("feedback_projection") for s in learner.synapses.values() if s.sends_back]
    assert len({None if P is None else P.data_ptr() for P in held}) == 1
    gradients(model, IMAGES)


def test_signals_may_enter_at_blocks_and_go_on_from_a_checkpoint(options):
    model = nn.Sequential(network()[:7], network()[7:10], network()[10])
    learner = attach(model, apical.rule("dfa", **options), IMAGES, at=["0", "1"])
    expected = gradients(model, IMAGES)
    assert all(expected[name].any() for name in ("0.0.weight", "0.3.weight", "0.5.weight", "1.8.weight"))
    assert apical.audit(learner, IMAGES, Y, CRITERION).summary == "normalization scale"
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    equal(gradients(again, IMAGES), expected, rtol=0, atol=0)
    inner, expected = made(options), gradients(made(options), IMAGES)
    inner[2].forward = lambda x: checkpoint(torch.relu, x, use_reentrant=False)
    equal(gradients(inner, IMAGES), expected)


def test_connections_may_be_absent_where_each_has_a_number_of_its_own():
    learner = attach(network(), apical.rule("dfa", positions="same"), IMAGES, connectivity=0.5)
    D = learner.synapses["5"].feedback
    assert 0 < float((D == 0).float().mean()) < 1
    for more in ({"rank": 2}, {"shared": True}, {"seeded": True}):
        with pytest.raises(ValueError, match=r"rank=, shared= or seeded="):
            attach(network(), apical.rule("dfa", **more), IMAGES, connectivity=0.5)
        attach(network(), apical.rule("dfa", **more), IMAGES, connectivity=apical.Connectivity(weight=0.5))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"positions": "some"}, "'all', 'same'"),
        ({"positions": (2,)}, r"\(h, w\)"),
        ({"positions": (0, 2)}, "at least 1"),
        ({"positions": 3}, "positions"),
        ({"rank": 0}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"shared": 1}, "shared"),
        ({"shared": True, "seeded": True}, "seeded=True"),
        ({"per_position": True, "positions": "same"}, "per_position=True"),
        ({"seeded": True, "init": nn.init.orthogonal_}, "seeded"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        apical.rule("dfa", **options)


@pytest.mark.parametrize("rule", ["kp-direct", "np-direct", "sg-direct"])
@pytest.mark.parametrize("option", ["shared", "seeded"])
def test_feedback_that_learns_is_neither_shared_nor_seeded(rule, option):
    with pytest.raises(ValueError, match=f"{option}=True is for fixed feedback"):
        apical.rule(rule, **{option: True})
    with pytest.raises(ValueError, match=f"{option}=True is for fixed feedback"):
        apical.Rule(apical.Direct(**{option: True}), "mirror")


def test_what_is_made_can_not_be_set_and_grids_want_maps():
    for option in ("shared", "seeded"):
        synapse = attach(network(), apical.rule("dfa", **{option: True}), IMAGES).synapses["5"]
        with pytest.raises(ValueError, match=f"{option}=True"):
            synapse.feedback = synapse.feedback.clone()
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Conv1d(3, 3, 3), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ValueError, match="positions='same'"):
        attach(net, apical.rule("dfa", positions=(2, 2)), torch.randn(2, 2, 8))
    assert attach(net, apical.rule("dfa", positions="same"), torch.randn(2, 2, 8)).synapses["2"].feedback.shape == (
        3,
        3,
    )


def test_feedback_beyond_the_memory_at_hand_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr("apical.attaching.samples.free_memory", lambda device: 10_000)
    monkeypatch.setattr("apical.plasticity.base.draw_for", lambda *args: pytest.fail("it was made"))
    with pytest.raises(ValueError, match="of direct feedback at 4 places") as caught:
        attach(network(), "dfa", IMAGES)
    size = 3 * 4 * (4 * 36 + 5 * 36 + 216 + 7)
    for word in (
        f"{size:,} bytes",
        "'8'",
        "[3, 216]",
        "positions='same'",
        "rank=64",
        "seeded=True",
        "shared=True",
        "at=[",
    ):
        assert word in str(caught.value)
    attach(network(), apical.rule("dfa", seeded=True), IMAGES)
    with pytest.raises(ValueError, match=f"{2 * size:,} bytes"):
        attach(network(), "kp-direct", IMAGES)


def test_resnet50_is_refused_in_full_where_a_large_gpu_is_all_there_is(monkeypatch):
    monkeypatch.setattr("apical.attaching.samples.free_memory", lambda device: 80 * 2**30)
    model, x = apical.networks.resnet50(classes=1000), torch.zeros(1, 3, 224, 224)
    with pytest.raises(ValueError, match=r"\(39\.2 GiB\) of direct feedback at 53 places"):
        attach(model, "dfa", x)
    learner = attach(model, apical.rule("dfa", positions="same", rank=64), x)
    kept = {t.data_ptr(): t.nbytes for n, t in model.named_buffers() if "feedback" in n}
    assert sum(kept.values()) < 2**23
    assert sum(s.sends_back for s in learner.synapses.values()) == 53


def test_the_command_line_has_the_options():
    assert rule_of("dfa:positions=same,rank=64") == apical.rule("dfa", positions="same", rank=64)
    for text in ("dfa:positions=(2,3),seeded=True", "dfa:positions=[2,3],seeded=True"):
        assert rule_of(text) == apical.rule("dfa", positions=(2, 3), seeded=True)
        assert hash(rule_of(text)) == hash(apical.rule("dfa", positions=(2, 3), seeded=True))
    assert rule_of("kp-direct:per_position=False").pathway == apical.Direct(per_position=False)
    with pytest.raises(ValueError, match="no hyperparameter 'positions'"):
        rule_of("ifa:positions=same")
