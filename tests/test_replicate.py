"""Copies in one pass against the same networks one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import apical
from apical.losses import cross_entropy

N, ROWS = 3, 5
X = torch.randn(N, ROWS, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.randint(3, (N, ROWS), generator=torch.Generator().manual_seed(2))
RULES = ("bp", "shallow", "fa", "frfb", "dfa", "usf", "frsf", "kp", "matched", "urfb", "kp-direct")


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)
    ).double()


def without_biases() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 9, bias=False), nn.Tanh(), nn.Linear(9, 3, bias=False)).double()


class Residual(nn.Module):
    """Strided, grouped and dilated convolutions, batch and group norm, a shortcut, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.group = nn.GroupNorm(2, 4)
        self.down = nn.Conv2d(4, 6, 2, stride=2, padding_mode="circular")
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        h = F.relu(self.norm(self.first(x)))
        h = h + torch.tanh(self.group(self.inner(h)))
        h = F.relu(self.up(F.relu(self.down(h))))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


def made(make) -> list[nn.Module]:
    models = []
    for seed in range(N):
        torch.manual_seed(seed)
        models.append(make())
    return models


def attached(make, rule, at=None) -> list[nn.Module]:
    models = made(make)
    for seed, model in enumerate(models):
        generator = torch.Generator().manual_seed(10 + seed)
        apical.attach(model, rule, example_input=X[0], at=at, generator=generator)
    return models


def losses(outputs, y=Y):
    return cross_entropy(outputs.flatten(0, 1), y.flatten()).view(N, -1).mean(1)


def same(ours: list[nn.Module], theirs: list[nn.Module]) -> None:
    for mine, its in zip(ours, theirs, strict=True):
        a, b = mine.state_dict(), its.state_dict()
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


OPTIMIZERS = {
    "torch": lambda model, **options: torch.optim.SGD(model.parameters(), 0.1, **options),
    "local": lambda model, **options: apical.LocalSGD(apical.learner_of(model), 0.1, **options),
}


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.01}], ids=["plain", "momentum"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", [*RULES, "ifa"])
@pytest.mark.parametrize("make", [chain, without_biases, Residual])
def test_copies_learn_what_they_would_alone(make, rule, optimizer, options):
    if rule == "ifa" and make is Residual:
        pytest.skip("needs a chain that keeps shape")
    singles = attached(make, rule)
    replicas = apical.replicate(singles, example_input=X[0])
    moves = OPTIMIZERS[optimizer](replicas, **options)
    for _ in range(4):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = OPTIMIZERS[optimizer](single, **options)
        for _ in range(4):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)


def trained(singles, optimize, steps=4):
    """Copies of `singles` and `singles` themselves after as many steps, with each one's phase."""
    replicas = apical.replicate(singles, example_input=X[0])
    learner, moves = apical.learner_of(replicas), optimize(replicas)
    for _ in range(steps):
        losses(replicas(X)).sum().backward()
        learner.adapt(X, Y, cross_entropy)
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = optimize(single)
        x, y = X[index], Y[index]
        for _ in range(steps):
            cross_entropy(single(x), y).mean().backward()
            apical.learner_of(single).adapt(x, y, cross_entropy)
            own.step()
            own.zero_grad()
    return replicas.split()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "rule",
    [
        "wm",
        "brsf",
        apical.rule("wm", distribution="rademacher", batches=2, alternate=True, positions=5, warmup=2),
        {"": "brsf", next(iter(dict(Residual().named_children()))): "bp"},
    ],
    ids=["wm", "brsf", "wm-alternate", "mixed"],
)
@pytest.mark.parametrize("make", [chain, Residual])
def test_each_copy_draws_what_it_would_alone(make, rule, optimizer):
    if make is chain and isinstance(rule, dict):
        pytest.skip("names a module of the other network")
    singles = attached(make, rule)
    copies = trained(singles, OPTIMIZERS[optimizer])
    same(copies, singles)
    for one, single in zip(copies, singles, strict=True):
        mine, its = (apical.learner_of(m) for m in (one, single))
        assert torch.equal(mine.generator.get_state(), its.generator.get_state())
        assert mine.adapted == its.adapted


NUMBERS = {
    "urfb": [{"epsilon": 0.0}, {"epsilon": 0.5}, {"epsilon": 1.0}],
    "kp-direct": [{"epsilon": 1.0}, {"epsilon": 0.25}, {"epsilon": 2}],
    "usf": [{"scale": 1.0}, {}, {"scale": 0.1}],
    "wm": [{"noise": 0.5, "rate": 0.1}, {"noise": 2.0, "rate": 0.3}, {"noise": 1.0, "decay": 0.1}],
    "np": [{"init": "nokland2016"}, {"init": "amit2019"}, {"init": nn.init.orthogonal_}],
    "fa": [{"init": "nokland2016"}, {"init": "amit2019"}, {"init": nn.init.orthogonal_}],
}


def with_numbers(make, rule) -> list[nn.Module]:
    models = made(make)
    for seed, (model, numbers) in enumerate(zip(models, NUMBERS[rule], strict=True)):
        generator = torch.Generator().manual_seed(10 + seed)
        apical.attach(model, apical.rule(rule, **numbers), example_input=X[0], generator=generator)
    return models


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rule", NUMBERS)
@pytest.mark.parametrize("make", [chain, Residual])
def test_copies_have_numbers_of_their_own(make, rule, momentum, optimizer):
    singles = with_numbers(make, rule)
    copies = trained(singles, lambda model: OPTIMIZERS[optimizer](model, momentum=momentum))
    same(copies, singles)
    for one, single in zip(copies, singles, strict=True):
        assert apical.learner_of(one).rules == apical.learner_of(single).rules


BLOCKS = {chain: ["5"], Residual: ["norm", "group"]}


@pytest.mark.parametrize("replicated_first", [False, True])
@pytest.mark.parametrize("rule", ["dfa", "kp-direct"])
@pytest.mark.parametrize("make", BLOCKS)
def test_copies_take_their_signal_at_the_same_blocks(make, rule, replicated_first):
    singles = made(make)
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    options = {"at": BLOCKS[make], "connectivity": 0.5}
    if replicated_first:
        replicas = apical.replicate(singles, example_input=X[0])
        drawn = [generator.clone_state() for generator in generators]
        apical.attach(replicas, rule, example_input=X, generator=drawn, **options)
    for single, generator in zip(singles, generators, strict=True):
        apical.attach(single, rule, example_input=X[0], generator=generator, **options)
    if not replicated_first:
        replicas = apical.replicate(singles, example_input=X[0])
    same(replicas.split(), singles)
    moves = OPTIMIZERS["torch"](replicas)
    for _ in range(3):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = OPTIMIZERS["torch"](single)
        for _ in range(3):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)
    assert list(apical.learner_of(replicas.split()[0]).blocks) == BLOCKS[make]


class Own(nn.Module):
    """Has attributes that are called `copies`."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = nn.ModuleList([nn.Linear(6, 6), nn.Tanh()])
        self.block = nn.Tanh()
        vars(self.block)["copies"] = "two"
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.block(self.copies[1](self.copies[0](x))))


@pytest.mark.parametrize(
    ("rule", "at"),
    [("fa", None), ("dfa", None), ("dfa", ["block"]), (apical.rule("sg-direct", solver="ridge"), ["block"])],
)
def test_networks_may_have_copies_of_their_own(rule, at):
    x = torch.randn(2, 4, 6)
    learner = apical.attach(Own(), rule, example_input=x[0], at=at)
    assert learner.copies == 1
    if at is None:
        replicas = apical.replicate(learner.model, 2, example_input=x[0])
        torch.testing.assert_close(replicas(x)[1], learner.model(x[1]))
        assert type(replicas.split()[0].copies) is nn.ModuleList


def test_copies_attached_with_rules_and_generators_of_their_own_are_the_networks_attached_alone():
    rules = [apical.rule("urfb", **numbers) for numbers in NUMBERS["urfb"]]
    replicas = apical.replicate(made(chain), example_input=X[0])
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    learner = apical.attach(replicas, rules, example_input=X, generator=generators)
    same(replicas.split(), with_numbers(chain, "urfb"))
    assert learner.name == "urfb"
    two = pickle.loads(pickle.dumps(replicas))
    same(two.split(), replicas.split())
    state = learner.state_dict()
    again = apical.learner_of(two)
    draw = torch.rand(3, generator=learner.generator.own[1])
    again.load_state_dict(state)
    assert torch.equal(torch.rand(3, generator=again.generator.own[1]), draw)


TUNED = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "Adam": {"amsgrad": True},
    "AdamW": {"weight_decay": 0.0},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {"lr_decay": 0.1},
}


def smooth() -> nn.Sequential:
    """No bias without a gradient, as before batch norm: Adam would make steps of its rounding."""
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.Tanh(), nn.Linear(9, 3)).double()


@pytest.mark.parametrize("kind", TUNED)
def test_copies_are_tuned_one_by_one(kind):
    rates, decays = (0.5, 1.0, 3.0), (0.0, 0.1, 0.01)
    singles = attached(smooth, "kp-direct")
    replicas = apical.replicate(singles, example_input=X[0])
    moves = getattr(torch.optim, kind)(replicas.parameters(), lr=0.01, **TUNED[kind])
    replicas.tune(moves, rates=rates, weight_decay=decays)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(moves, 0.9)
    for _ in range(4):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
        scheduler.step()
    for index, single in enumerate(singles):
        options = {**TUNED[kind], "weight_decay": decays[index]}
        own = getattr(torch.optim, kind)(single.parameters(), lr=0.01 * rates[index], **options)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(own, 0.9)
        for _ in range(4):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
            scheduler.step()
    same(replicas.split(), singles)


@pytest.mark.parametrize("rule", ["kp", "kp-direct", "usf", "brsf"])
def test_masks_of_copies_are_those_of_the_networks_attached_alone(rule):
    singles, replicas = made(chain), apical.replicate(made(chain), example_input=X[0])
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    apical.attach(replicas, rule, example_input=X, generator=generators, connectivity=0.5)
    for seed, single in enumerate(singles):
        generator = torch.Generator().manual_seed(10 + seed)
        apical.attach(single, rule, example_input=X[0], generator=generator, connectivity=0.5)
    same(replicas.split(), singles)


def test_states_are_those_of_single_networks_and_can_be_put_back():
    singles, others = attached(chain, "kp-direct"), attached(chain, "kp-direct")
    with torch.no_grad():
        for parameter in (p for other in others for p in other.parameters()):
            parameter.add_(1)
    replicas = apical.replicate(singles, example_input=X[0])
    for mine, its in zip(replicas.states(), singles, strict=True):
        assert mine.keys() == its.state_dict().keys()
        assert all(torch.equal(mine[name], its.state_dict()[name]) for name in mine)
    replicas.load_states([other.state_dict() for other in others])
    same(replicas.split(), others)
    with pytest.raises(ValueError, match="state 2 is of a network built otherwise"):
        replicas.load_states([others[0].state_dict(), {}, {}])


@pytest.mark.parametrize("pieces", ["optimizer first", "pass first"])
@pytest.mark.parametrize("rule", ["kp", "matched", "wm", "fa", {"": "kp", "1": "fa"}], ids=str)
def test_copies_whose_first_pass_decides_what_feedback_they_need_are_the_networks_alone(rule, pieces):
    singles = made(chain)
    replicas = apical.replicate(singles)
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(N)]
    apical.attach(replicas, rule, generator=[copy.deepcopy(own) for own in generators])
    states = []
    for model, x, y in ((replicas, X, None), *zip(singles, X, Y, strict=True)):
        if model is not replicas:
            apical.attach(model, rule, generator=generators[len(states) - 1])
        if pieces == "pass first":
            model(x)
        moves = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            (losses(model(x)).sum() if y is None else cross_entropy(model(x), y).mean()).backward()
            moves.step()
            moves.zero_grad()
        states.append(moves.state_dict()["state"])
    shares = replicas.optimizer_states(states[0])
    torch.testing.assert_close(shares, states[1:])
    torch.testing.assert_close(replicas.optimizer_state(shares), states[0])
    split = replicas.split()
    same(split, singles)
    assert apical.learner_of(split[0]).synapses["1"].feedback is None
    before = copy.deepcopy(replicas.state_dict())
    replicas.load_states([one.state_dict() for one in split])
    torch.testing.assert_close(replicas.state_dict(), before, rtol=0, atol=0)
    same(apical.replicate(split).split(), singles)


def test_networks_of_which_some_have_made_their_first_pass_become_copies():
    singles = made(without_biases)
    for single in singles:
        apical.attach(single, "kp")
    singles[1](X[1])
    replicas = apical.replicate(singles)
    assert apical.learner_of(replicas).synapses["1"].feedback is None
    torch.testing.assert_close(replicas(X), torch.stack([one(x) for one, x in zip(singles, X, strict=True)]))
    same(replicas.split(), singles)


def test_plain_networks_learn_by_backpropagation_as_alone():
    singles = made(Residual)
    replicas = apical.replicate(singles, example_input=X[0])
    moves = torch.optim.Adam(replicas.parameters(), 0.01)
    for _ in range(3):
        losses(replicas(X)).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = torch.optim.Adam(single.parameters(), 0.01)
        for _ in range(3):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)


def test_a_factor_of_the_loss_is_a_learning_rate_of_ones_own():
    singles = attached(chain, "kp")
    replicas = apical.replicate(singles, example_input=X[0])
    rates = torch.tensor([0.05, 0.1, 0.4], dtype=torch.float64)
    moves = torch.optim.SGD(replicas.parameters(), 1.0, momentum=0.9)
    for _ in range(3):
        (losses(replicas(X)) * rates).sum().backward()
        moves.step()
        moves.zero_grad()
    for index, single in enumerate(singles):
        own = torch.optim.SGD(single.parameters(), float(rates[index]), momentum=0.9)
        for _ in range(3):
            cross_entropy(single(X[index]), Y[index]).mean().backward()
            own.step()
            own.zero_grad()
    same(replicas.split(), singles)


def test_copies_of_one_network_have_equal_weights_and_draw_feedback_of_their_own():
    model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))
    before = copy.deepcopy(model.state_dict())
    replicas = apical.replicate(model, 4)
    learner = apical.attach(
        replicas, apical.rule("fa", init=nn.init.xavier_uniform_), example_input=torch.randn(4, 2, 200)
    )
    copies = replicas.split()
    for one in copies:
        assert torch.equal(one[0].weight, model[0].weight)
        B = apical.learner_of(one).synapses["2"].feedback
        assert B.abs().max() <= (6 / 110) ** 0.5  # Glorot's bound for one copy, not for four.
        assert B.abs().max() > 0.9 * (6 / 110) ** 0.5
    feedback = learner.synapses["2"].feedback.chunk(4)
    assert not torch.equal(feedback[0], feedback[1])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert type(model[0]) is nn.Linear


class Parts(nn.Sequential):
    """Layers 5-5 by what is asked for: a new one, an earlier one again, a new one with an earlier one's weights, or parts."""

    def __init__(self, plan) -> None:
        super().__init__()
        made: list[nn.Module] = []
        self._add(self, plan, made)

    def _add(self, parts: nn.Sequential, plan, made: list[nn.Module]) -> None:
        for kind in plan:
            if isinstance(kind, list):
                inner = nn.Sequential()
                self._add(inner, kind, made)
                made.append(inner)
            elif kind == "again" and made:
                inner = made[-1]
            else:
                inner = nn.Linear(5, 5, dtype=torch.float64)
                first = next((one for one in made if isinstance(one, nn.Linear)), None)
                if kind == "tied" and first is not None:
                    inner.weight = first.weight
                made.append(inner)
            parts.extend([inner, nn.Tanh()])


PLANS = st.recursive(
    st.sampled_from(["new", "again", "tied"]), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=5
).map(lambda plan: plan if isinstance(plan, list) else [plan])


@example(["new", "again"], 2, "fa", True)
@example(["new", "tied"], 2, "bp", False)
@given(PLANS, st.integers(1, 3), st.sampled_from(["bp", "fa"]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_networks_share_within_themselves_their_copies_share(plan, n, rule, attached_first):
    x = torch.randn(n, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    generators = [torch.Generator().manual_seed(10 + seed) for seed in range(n)]
    singles = made(lambda: Parts(plan))[:n]
    replicas = None if attached_first else apical.replicate(singles, example_input=x[0])
    for single, x_own, generator in zip(singles, x, generators, strict=True):
        apical.attach(single, rule, example_input=x_own, generator=copy.deepcopy(generator))
    if replicas is None:
        replicas = apical.replicate(singles, example_input=x[0])
    else:
        apical.attach(replicas, rule, example_input=x, generator=generators)
    velocities = []
    for model, inputs in ((replicas, x), *zip(singles, x, strict=True)):
        moves = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            model(inputs).square().sum().backward()
            moves.step()
            moves.zero_grad()
        velocities.append(moves.state_dict()["state"])
    torch.testing.assert_close(replicas.optimizer_states(velocities[0]), velocities[1:])
    split = replicas.split()
    same(split, singles)
    for mine, its, x_own in zip(split, singles, x, strict=True):
        torch.testing.assert_close(mine(x_own), its(x_own))
        for named in (nn.Module.named_modules, nn.Module.named_parameters):
            assert [name for name, _ in named(mine)] == [name for name, _ in named(its)]


def test_a_function_is_called_for_every_copy():
    torch.manual_seed(0)
    replicas = apical.replicate(chain, 2)
    torch.manual_seed(0)
    same(replicas.split(), [chain(), chain()])


def test_dropout_masks_are_independent():
    replicas = apical.replicate(nn.Sequential(nn.Linear(3, 1000), nn.Dropout(0.5)), 2)
    masks = replicas(torch.ones(2, 1, 3)) == 0
    assert 0.4 < (masks[0] ^ masks[1]).double().mean() < 0.6


def test_a_mirror_learns_every_copys_own_weights():
    torch.manual_seed(0)
    singles = [nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)) for _ in range(N)]
    replicas = apical.replicate(singles)
    x, y = torch.randn(N, 64, 20), torch.randint(5, (N, 64))
    learner = apical.attach(replicas, "wm", example_input=x)
    for _ in range(400):
        learner.adapt(x, y, cross_entropy)
    for one, single in zip(replicas.split(), singles, strict=True):
        B = apical.learner_of(one).synapses["2"].feedback.flatten()
        assert F.cosine_similarity(B, single[2].weight.flatten(), dim=0) > 0.98


def test_measures_are_those_of_single_copies():
    replicas = apical.replicate(attached(chain, "fa"), example_input=X[0])
    learner = apical.learner_of(replicas)
    with pytest.raises(ValueError, match="split"):
        apical.alignment(learner, X, Y, cross_entropy)
    with pytest.raises(ValueError, match="split"):
        apical.audit(learner, X, Y, cross_entropy)
    one = replicas.split()[1]
    found = apical.alignment(apical.learner_of(one), X[1], Y[1], cross_entropy)
    assert found["6"].matrix_angle is not None


@pytest.mark.parametrize("rule", ["np", "kp", "reinforce"])
def test_a_single_copy_is_measured_as_the_network_itself(rule):
    (single,) = attached(without_biases, rule)[:1]
    replicas = apical.replicate([single], example_input=X[0])
    for measure in (apical.alignment, apical.audit):
        mine, its = (measure(apical.learner_of(model), X[0], Y[0], cross_entropy) for model in (replicas, single))
        assert mine == its
    cross_entropy(replicas(X[:1])[0], Y[0]).mean().backward()
    apical.learner_of(replicas).adapt(X[:1], Y[:1], cross_entropy)


REGRESSIONS = {
    "np": {},
    "np, ridge": {"solver": "ridge"},
    "np, uniform": {"distribution": "uniform", "noise": 0.1, "warmup": 2},
    "sg": {"rate": 0.5},
    "sg, ridge": {"solver": "ridge", "gamma": 2.0},
    "reinforce": {"noise": 0.1},
}


@pytest.mark.parametrize("pool", [64, 2**20], ids=["pool", "drawn"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("make", [chain, without_biases, Residual])
def test_feedback_regresses_as_alone(make, name, optimizer, pool, monkeypatch):
    if make is Residual and "ridge" in name:
        pytest.skip("ridge is for linear layers")
    monkeypatch.setattr("apical.noise.POOL", pool)
    singles = attached(make, apical.rule(name.partition(",")[0], **REGRESSIONS[name]))
    before = [{k: v.clone() for k, v in model.state_dict().items() if k.endswith("feedback")} for model in singles]
    same(trained(singles, OPTIMIZERS[optimizer]), singles)
    assert all(
        not torch.equal(model.state_dict()[k], b[k]) for model, b in zip(singles, before, strict=True) for k in b
    )


@pytest.mark.parametrize(
    "rule",
    [*("np", "sg", "sg-direct", "reinforce"), *(apical.rule(name, solver="ridge") for name in ("sg", "sg-direct"))],
    ids=lambda rule: rule if isinstance(rule, str) else f"{rule.name}-ridge",
)
def test_one_copy_learns_as_the_network_itself(rule):
    (single,) = attached(chain, rule)[:1]
    replicas = apical.replicate([single], example_input=X[0])
    alone, learner = apical.learner_of(single), apical.learner_of(replicas)
    alone.generator.manual_seed(3)
    learner.generator.manual_seed(3)
    x, y = X[:1], Y[:1]
    cross_entropy(replicas(x)[0], y[0]).mean().backward()
    learner.adapt(x, y, cross_entropy)
    own, targets = X[0], Y[0]
    cross_entropy(single(own), targets).mean().backward()
    alone.adapt(own, targets, cross_entropy)
    same(replicas.split(), [single])
    for mine, its in zip(replicas.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("like", [torch.empty(N, ROWS, 6), torch.empty(ROWS, N, 6).transpose(0, 1)])
def test_a_batch_whose_memory_is_filled_anew_is_another_batch(like):
    replicas = apical.replicate(lambda: nn.Linear(6, 3), N)
    apical.attach(replicas, "bp")
    x = torch.ones_like(like)
    before = replicas(x)
    x.data.zero_()
    assert not torch.equal(replicas(x), before)
    torch.testing.assert_close(replicas(x), replicas(x.clone()))


def test_feedback_regresses_on_the_pass_that_the_loop_has_made():
    replicas = apical.replicate(attached(chain, "sg"), example_input=X[0])
    learner, passes = apical.learner_of(replicas), []
    losses(replicas(X)).sum().backward()
    learner.adapt(X, Y, cross_entropy)  # The first time, whether the model is random is looked at.
    replicas.model.register_forward_hook(lambda *_: passes.append(1))
    x = X.clone()
    losses(replicas(x)).sum().backward()
    learner.adapt(x, Y, cross_entropy)
    assert len(passes) == 2
    x.add_(1)
    torch.testing.assert_close(replicas(x), replicas(x.clone()))


@pytest.mark.parametrize("rule", ["np-direct", "sg-direct"])
def test_rules_that_compare_losses_are_refused(rule):
    with pytest.raises(ValueError, match="one by one"):
        apical.attach(apical.replicate(chain(), 2), rule, example_input=X[:2])


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(x).softmax(1))


def hooked(register) -> nn.Sequential:
    model = chain()
    register(model)
    return model


def viewed() -> nn.Sequential:
    """An autoencoder whose decoder's weights are a view of the encoder's."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    model[2].weight = nn.Parameter(model[0].weight.detach().t())
    return model


HOOKS = {
    "1: Linear": lambda model: model[1].register_forward_hook(lambda *_: None),
    "3: Tanh": lambda model: model[3].register_full_backward_hook(lambda *_: None),
    "4: Linear": lambda model: apical.NoisyActivations(model, 1.0),
}


@pytest.mark.parametrize("name", HOOKS)
def test_networks_with_hooks_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} has hooks, .* replicas.model"):
        apical.replicate([chain(), hooked(HOOKS[name])])
    replicas = apical.replicate(chain(), 2)
    HOOKS[name](replicas.model)
    replicas(X[:2])


def tuned(kind, **numbers):
    replicas = apical.replicate(chain(), N)
    replicas.tune(kind(replicas.parameters(), lr=0.1), **numbers)


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda: apical.replicate(chain()), "n must be"),
        (lambda: apical.replicate(chain(), 0), "n must be"),
        (lambda: apical.replicate([chain()], 2), "leave n out"),
        (lambda: apical.replicate(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), 2), "1: LayerNorm mixes channels"),
        (lambda: apical.replicate(nn.Sequential(nn.Embedding(3, 3)), 2), "Embedding holds weight"),
        (lambda: apical.replicate([nn.Linear(3, 2), nn.Linear(3, 4)]), "network 2 is built otherwise"),
        (lambda: apical.replicate([Parts(["new", "tied"]), Parts(["new", "new"])]), "network 2 is built otherwise"),
        (lambda: apical.replicate([Parts(["new", "new"]), Parts(["new", "again"])]), "network 2 is built otherwise"),
        (lambda: apical.replicate(viewed(), 2), "2.weight lies in the memory of 0.weight"),
        (lambda: apical.replicate([chain(), attached(chain, "fa")[0]]), "attach all or none"),
        (lambda: apical.replicate([*attached(chain, "fa"), attached(chain, "kp")[0]]), "other rules"),
        (
            lambda: apical.replicate([*attached(chain, "wm"), attached(chain, apical.rule("wm", batches=2))[0]]),
            "different values of batches .* may differ in noise, rate, decay, init",
        ),
        (
            lambda: apical.attach(
                apical.replicate(chain(), 3),
                [apical.rule("kp-direct", **own) for own in NUMBERS["kp-direct"]],
                example_input=X,
                at=["5"],
            ),
            "one rule for all copies, and that of copy 2 differs",
        ),
        (
            lambda: apical.replicate([attached(chain, "dfa", at=at)[0] for at in (["3"], ["5"])]),
            r"network 2 is attached at= \['5'\]",
        ),
        (lambda: apical.attach(apical.replicate(chain(), 2), ["fa"], example_input=X[:2]), "a list of 2 for 2 copies"),
        (
            lambda: apical.attach(apical.replicate(chain(), 2), "fa", generator=[torch.Generator()]),
            "or 2 of them for 2 copies",
        ),
        (lambda: tuned(torch.optim.Rprop), "steps are proportional"),
        (lambda: tuned(torch.optim.SGD, rates=[1, 2]), "rates must be 3 numbers"),
        (lambda: tuned(torch.optim.AdamW, weight_decay=[0, 1, 2]), "weight_decay=0"),
        (lambda: apical.replicate(Mixes(), 2, example_input=torch.randn(2, 6)), "mixes channels outside"),
        (lambda: apical.replicate(chain(), 3)(X[0]), "copies first"),
        (
            lambda: apical.replicate(nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), 3)(torch.randn(3, 4, 3)),
            "side by side",
        ),
    ],
)
def test_what_can_not_be_done_is_refused(act, match):
    with pytest.raises(ValueError, match=match):
        act()


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="networks"):
        apical.replicate([1, 2])
