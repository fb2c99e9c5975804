from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from apical.benchmark import benchmark, timing
from apical.benchmark.benchmark import (
    PLAIN,
    SUBJECTS,
    BenchmarkConfig,
    Subject,
    Timing,
    contest,
    peak_memory,
    run,
    table,
    training_step,
)
from apical.cli.benchmark import Benchmark
from apical.learner import Learner
from apical.losses import squared_error
from apical.networks import mlp, resnet20

TINY = {
    "tiny": Subject(lambda: mlp([6, 5, 4, 10]), (6,), 4),
    "small": Subject(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10)), (2, 6, 6), 3
    ),
}


@pytest.fixture
def tiny(monkeypatch):
    """Two networks that take no time, in place of the real ones."""
    monkeypatch.setattr(benchmark, "SUBJECTS", TINY)


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


# What is timed ---------------------------------------------------------------------------------------------------------


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(12, 10),
    )


NETWORKS = {
    "mlp": (lambda: mlp([192, 20, 10]), (3, 8, 8)),
    "convolutional": (convolutional, (3, 8, 8)),
    "resnet20": (resnet20, (3, 16, 16)),
}


def trained_by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", [None, "bp"])
def test_timed_steps_of_backpropagation_end_where_plain_training_does(name, rule):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    x, y = torch.randn(8, *shape, dtype=torch.float64), torch.randint(10, (8,))
    by_hand = copy.deepcopy(model)
    torch.manual_seed(1)  # Of dropout.
    expected = trained_by_hand(by_hand, x, y, 4)
    before = copy.deepcopy(model.state_dict())
    step = training_step(model.eval(), rule, x, y, optimizer="SGD:momentum=0.9", learning_rate=0.01)
    torch.manual_seed(1)
    for _ in range(4):
        step()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12, msg=key)
    assert any(not torch.equal(found[key], before[key]) for key in found)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("rule", ["fa", "dfa", "kp", "usf"])
def test_timed_steps_of_other_rules_learn_as_attached_training_does(rule, local):
    import apical

    torch.manual_seed(0)
    model = mlp([6, 5, 4, 10])
    x, y = torch.randn(8, 6), torch.randint(10, (8,))
    by_hand = copy.deepcopy(model)
    apical.attach(by_hand, rule, example_input=x, generator=torch.Generator().manual_seed(1))
    expected = trained_by_hand(by_hand, x, y, 5)
    step = training_step(model, rule, x, y, optimizer="SGD:momentum=0.9", learning_rate=0.01, local=local)
    for _ in range(5):
        step()
    torch.testing.assert_close(dict(model.state_dict()), dict(expected))


def test_an_optimizer_that_can_not_be_made_is_named():
    with pytest.raises(ValueError, match="optimizer 'Adam:betas=2' can't be made"):
        training_step(nn.Linear(4, 3), None, torch.zeros(2, 4), torch.arange(2), optimizer="Adam:betas=2")


def test_a_step_adapts_between_backward_and_the_optimizer(monkeypatch):
    torch.manual_seed(0)
    model = mlp([6, 5, 10])
    x, y = torch.randn(4, 6), torch.randint(10, (4,))
    weights = [p.detach().clone() for p in model.parameters()]
    calls = []

    def adapt(self, *arguments):
        assert all(p.grad is not None for p in model.parameters())
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
        calls.append(arguments)

    monkeypatch.setattr(Learner, "adapt", adapt)
    training_step(model, "fa", x, y, optimizer="SGD", criterion=squared_error)()
    assert calls == [(x, y, squared_error)]
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_networks_are_timed_in_train_mode():
    model = convolutional().eval()
    training_step(model, "fa", torch.randn(4, 3, 8, 8), torch.arange(4), optimizer="SGD")
    assert all(module.training for module in model.modules())


def test_contenders_start_from_the_same_weights_and_see_the_same_batch(tiny, monkeypatch):
    seen = {}

    def spy(model, rule, x, y, **options):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        seen.setdefault(rule, []).append((model, state, x, y, options))
        return training_step(model, rule, x, y, **options)

    monkeypatch.setattr(benchmark, "training_step", spy)
    run(BenchmarkConfig(networks=("tiny",), rules=("fa", "dfa"), seconds=1e-9, repeats=2))
    assert list(seen) == [None, "fa", "dfa"]
    reference = seen[None][0]
    everything = [entry for entries in seen.values() for entry in entries]
    assert len({id(model) for model, *_ in everything}) == len(everything)
    for _, state, x, y, options in everything:
        assert x is reference[2]
        assert y is reference[3]
        assert options == {"optimizer": "SGD:momentum=0.9", "local": False, "setting": None, "mixed": False}
        for key, value in reference[1].items():
            assert torch.equal(state[key], value), key


# How it is timed -------------------------------------------------------------------------------------------------------


def test_ratios_are_exact_on_a_clock_that_only_steps_move(clock):
    def maker(seconds):
        def step():
            clock.now += seconds

        return lambda: step

    found = contest({"plain": maker(2.0), "half": maker(1.0), "more": maker(3.0)}, seconds=60, repeats=2)
    # A round takes 6 s, so each of the two repeats has five in its 30 s.
    assert found == {
        "plain": Timing(2000.0, 1.0, 1.0, 1.0, 10),
        "half": Timing(1000.0, 0.5, 0.5, 0.5, 10),
        "more": Timing(3000.0, 1.5, 1.5, 1.5, 10),
    }


def test_a_machine_that_slows_down_does_not_touch_the_ratio(clock):
    rounds = {"plain": 0, "other": 0}

    def maker(name, seconds):
        def step():
            clock.now += seconds * 1.5 ** rounds[name]
            rounds[name] += 1

        return lambda: step

    found = contest({"plain": maker("plain", 1.0), "other": maker("other", 1.25)}, seconds=100)
    assert found["other"].ratio == pytest.approx(1.25)
    assert found["other"].high == pytest.approx(1.25)


def test_one_slow_round_does_not_touch_the_ratio(clock):
    calls = []

    def make():
        def step():
            calls.append(1)
            clock.now += 100.0 if len(calls) == 6 else 1.0

        return step

    def plain():
        clock.now += 1.0

    found = contest({"plain": lambda: plain, "other": make}, seconds=150)
    assert found["other"].ratio == 1.0


def test_everybody_takes_part_in_every_round_after_warming_up(clock):
    log = []

    def maker(name):
        def step():
            log.append(name)
            clock.now += 1.0

        return lambda: step

    found = contest({name: maker(name) for name in "abc"}, seconds=1e-9)
    assert log[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [log[6 + 3 * i : 9 + 3 * i] for i in range(3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert {r[0] for r in rounds} == {"a", "b", "c"}  # Nobody always follows the same one into a cold cache.
    assert len(log) == 15
    assert found["a"].rounds == 3


def test_turns_of_short_steps_are_long_and_do_not_count_the_first(clock):
    cold = 5.0
    log = []

    def maker(name, seconds):
        def step():
            clock.now += seconds * (cold if log[-1:] != [name] else 1.0)  # The others have emptied the caches.
            log.append(name)

        return lambda: step

    found = contest({"plain": maker("plain", 0.01), "other": maker("other", 0.02)}, seconds=10)
    assert found["plain"].milliseconds == pytest.approx(10)
    assert found["other"].ratio == pytest.approx(2)
    # 5 steps of 10 ms are a turn of 50 ms; one more goes first.
    after = log[4:]
    assert after[:12] == ["plain"] * 6 + ["other"] * 6
    assert len(after) == found["plain"].rounds * 12


# Memory ----------------------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_alive_at_once():
    mib = 2**18  # float32 values in a MiB.

    def make():
        standing = torch.zeros(4 * mib)

        def step():
            for _ in range(3):
                torch.zeros(8 * mib)
            assert standing is not None

        return step

    assert peak_memory(make) == pytest.approx(12, abs=0.01)


def test_peak_memory_of_a_step_is_repeatable_and_holds_what_the_rule_adds():
    torch.manual_seed(0)
    model = mlp([300, 400, 300, 10])
    x, y = torch.randn(4, 300), torch.randint(10, (4,))

    def memory(rule):
        return peak_memory(lambda: training_step(copy.deepcopy(model), rule, x, y, optimizer="SGD:momentum=0.9"))

    plain = memory(None)
    weights = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    feedback = (400 * 300 + 300 * 10) * 4 / 2**20
    assert memory(None) == plain
    assert plain == pytest.approx(3 * weights, rel=0.05)  # Weights, gradients, momentum; activations are small.
    assert memory("bp") == pytest.approx(plain, rel=0.01)
    assert memory("fa") - plain == pytest.approx(feedback, rel=0.05)
    assert memory("kp") - plain == pytest.approx(3 * feedback, rel=0.05)


def test_products_of_a_step_are_counted_and_the_share_of_the_floor_follows(tiny, monkeypatch):
    model = mlp([6, 5, 10])
    x, y = torch.randn(4, 6), torch.randint(10, (4,))
    # Forward and update of both layers, the signal of the second: 2 n i o each.
    expected = 2 * 4 * (2 * 6 * 5 + 3 * 5 * 10)
    assert timing.products(training_step(model, None, x, y, optimizer="SGD")) == expected
    assert timing.matrix_rate() > 1e8
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device: 1e6)
    for m in run(BenchmarkConfig(networks=("tiny",), rules=("fa",), seconds=0.01)):
        assert m.share == pytest.approx(1000 * 2 * 4 * (2 * 30 + 3 * 20 + 3 * 40) / 1e6 / m.timing.milliseconds)


def test_mixed_precision_is_a_contender_of_its_own(tiny):
    found = run(BenchmarkConfig(networks=("small",), rules=("fa", "dfa"), mixed=True, seconds=0.01))
    assert [m.rule for m in found] == [PLAIN, "fa", "dfa", "plain, bfloat16", "fa, bfloat16", "dfa, bfloat16"]
    seen = []
    model = TINY["small"].build()
    model[0].register_forward_hook(lambda module, args, output: seen.append((args[0].stride(1), output.dtype)))
    training_step(model, "fa", torch.randn(3, 2, 6, 6), torch.tensor([0, 1, 2]), optimizer="SGD", mixed=True)()
    assert seen[-1] == (1, torch.bfloat16)


def test_direct_signals_do_not_wait_for_each_other():
    """Made all at once, signals to twelve layers would take twelve activities' memory."""
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())]
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Tanh(), *layers, nn.Flatten(), nn.Linear(4 * 256, 10))
    x, y = torch.randn(64, 1, 16, 16), torch.randint(10, (64,))

    def memory(rule):
        return peak_memory(lambda: training_step(copy.deepcopy(model), rule, x, y, optimizer="SGD"))

    activity = 64 * 4 * 256 * 4 / 2**20
    feedback = 13 * 10 * 4 * 256 * 4 / 2**20
    assert memory("dfa") < memory(None) + feedback + 2 * activity


# The whole -------------------------------------------------------------------------------------------------------------


def test_run_measures_every_rule_on_every_network_and_leaves_no_trace(tiny):
    watched = []
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = run(
        BenchmarkConfig(networks=("tiny", "small"), rules=("bp", "dfa"), seconds=0.01, threads=1), watched.append
    )
    assert watched == ["tiny", "small"]
    assert [(m.network, m.batch, m.rule) for m in found] == [
        (network, batch, rule) for network, batch in (("tiny", 4), ("small", 3)) for rule in (PLAIN, "bp", "dfa")
    ]
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    for m in found:
        assert m.timing.low <= m.timing.ratio <= m.timing.high
        assert m.timing.milliseconds > 0
        assert m.timing.rounds >= 12
        assert m.peak_memory > 0
        if m.rule == PLAIN:
            assert (m.timing.ratio, m.memory_ratio) == (1.0, 1.0)


def test_table_shows_ratios_with_rules_as_rows(tiny):
    found = run(BenchmarkConfig(networks=("tiny", "small"), rules=("fa",), seconds=1e-9, repeats=1))
    out = io.StringIO()
    Console(file=out, width=120).print(table(found))
    text = out.getvalue()
    fa = next(line for line in text.splitlines() if line.split()[1:2] == ["fa"])
    assert "tiny, 4" in text
    assert "small, 3" in text
    assert text.count(" ms") == text.count(" MiB") == 2
    for m in (m for m in found if m.rule == "fa"):
        assert f"{m.timing.ratio:.2f} ({m.memory_ratio:.2f})" in fa


def test_table_keeps_names_whole_on_a_narrow_terminal():
    timing = Timing(1.0, 1.0, 1.0, 1.0, 3)
    found = [benchmark.Measurement(name, 64, rule, timing, 1.0, 1.0) for name in SUBJECTS for rule in (PLAIN, "fa")]
    out = io.StringIO()
    Console(file=out, width=80).print(table(found))
    text = out.getvalue()
    assert "…" not in text
    header = [line.strip("┃\n").split("┃") for line in text.splitlines() if line.startswith("┃")]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*header, strict=True)]
    assert [column.replace(" ", "") for column in columns[1:]] == [f"{name},64" for name in SUBJECTS]


def test_command_writes_figures_with_machine_versions_date_and_threads(tiny, tmp_path, capsys):
    config = BenchmarkConfig(networks=("tiny",), rules=("fa", "urfb:epsilon=0.5"), seconds=1e-9, repeats=1, threads=1)
    Benchmark(config, json=tmp_path / "figures" / "here.json").run()
    written = json.loads((tmp_path / "figures" / "here.json").read_text())
    assert set(written) >= {"machine", "threads", "date", "versions", "config", "measurements"}
    assert written["threads"] == 1
    assert written["versions"]["torch"] == torch.__version__
    assert written["config"]["rules"] == ["fa", "urfb:epsilon=0.5"]
    assert [m["rule"] for m in written["measurements"]] == [PLAIN, "fa", "urfb:epsilon=0.5"]
    assert set(written["measurements"][1]["timing"]) == {"milliseconds", "ratio", "low", "high", "rounds"}
    assert not [path for path in (tmp_path / "figures").iterdir() if path.name != "here.json"]


def test_command_refuses_a_folder_before_timing(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "run", lambda *a: pytest.fail("timed"))
    with pytest.raises(ValueError, match="is a folder; name a file"):
        Benchmark(json=tmp_path).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": ("resnet-20",)}, r"unknown network 'resnet-20' to benchmark; did you mean 'resnet20'"),
        ({"networks": ("784-800-10",)}, "did you mean .*'784-1000-10'"),
        ({"rules": ("fa", "dfaa")}, "unknown rule 'dfaa'; did you mean 'dfa'"),
        ({"rules": ("urfb:epsilom=0.5",)}, "no hyperparameter 'epsilom'"),
        ({"optimizer": "Adam", "local": True}, "local needs SGD"),
        ({"optimizer": "SGD:fused=True", "local": True}, "local needs SGD"),
        ({"optimizer": "SDG"}, "unknown optimizer 'SDG'; did you mean 'SGD'"),
        ({"rules": ()}, "at least one"),
        ({"networks": ()}, "at least one"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"repeats": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"device": "gpu"}, "device must be cpu or cuda, got 'gpu'"),
    ],
)
def test_faults_of_the_config_are_found_before_any_timing(options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkConfig(**options)


def test_a_gpu_that_is_not_there_is_found_before_any_timing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU here; leave it at cpu"):
        BenchmarkConfig(device="cuda")


def test_the_networks_are_those_the_figures_are_quoted_for():
    assert {name: (subject.shape, subject.batch) for name, subject in SUBJECTS.items()} == {
        "784-50-20-10": ((784,), 32),
        "784-1000-10": ((784,), 64),
        "784-800-800-10": ((784,), 64),
        "3072-1000-1000-1000-10": ((3072,), 128),
        "lansdell2020-cnn": ((3, 32, 32), 64),
        "resnet20": ((3, 32, 32), 64),
    }
    for name, subject in SUBJECTS.items():
        with torch.no_grad():
            assert subject.build()(torch.randn(2, *subject.shape)).shape == (2, 10), name


def test_a_comparisons_own_step_is_timed_with_its_loss_optimizer_and_batch(monkeypatch):
    from apical import data as images
    from apical.comparison.config import CompareConfig

    config = CompareConfig(
        network="64-7-10",
        rules=("bp", "fa:init=nokland2016"),
        batch=16,
        optimizer="RMSprop",
        learning_rate=0.003,
        loss="squared-error",
    )
    seen = []

    def spy(model, rule, x, y, **options):
        seen.append((rule, tuple(x.shape), tuple(y.shape), options))
        return training_step(model, rule, x, y, **options)

    monkeypatch.setattr(benchmark, "training_step", spy)
    state = torch.get_rng_state()
    ratios = benchmark.step_ratios(config, images.load("digits"), seconds=1e-9)
    assert list(ratios) == ["bp", "fa:init=nokland2016"]
    assert all(ratio > 0 for ratio in ratios.values())
    options = {"optimizer": "RMSprop", "learning_rate": 0.003, "criterion": squared_error}
    assert seen == [(rule, (16, 1, 8, 8), (16,), options) for rule in (None, *ratios)] * 2
    assert torch.equal(torch.get_rng_state(), state)


# The figure ------------------------------------------------------------------------------------------------------------


def test_figure_has_a_panel_per_network_and_a_dot_per_rule_at_its_ratio(tiny, tmp_path):
    json_file, svg, again = tmp_path / "figures.json", tmp_path / "costs.svg", tmp_path / "again.svg"
    config = BenchmarkConfig(networks=("tiny", "small"), rules=("bp", "fa"), seconds=0.01)
    Benchmark(config, json=json_file, figure=svg).run()
    root = ElementTree.fromstring(svg.read_text())
    namespace = {"svg": "http://www.w3.org/2000/svg"}
    panels = root.findall("svg:g", namespace)
    assert [panel.findtext("svg:text", namespaces=namespace) for panel in panels] == ["tiny, batch 4", "small, batch 3"]
    measured = {
        (m["network"], m["rule"]): m["timing"]["ratio"] for m in json.loads(json_file.read_text())["measurements"]
    }
    for panel, network in zip(panels, ("tiny", "small"), strict=True):
        places = [float(dot.get("cx", "nan")) for dot in panel.findall("svg:circle", namespace)]
        ratios = [measured[network, rule] for rule in ("bp", "fa")]
        assert len(places) == 2
        assert (places[0] < places[1]) == (ratios[0] < ratios[1]) or places[0] == places[1]
    Benchmark(config, read=json_file, figure=again).run()
    assert again.read_text() == svg.read_text()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"figure": Path("costs.png")}, "ends in .svg"),
        ({"read": Path("figures.json")}, "goes with --figure"),
        ({"read": Path("missing.json"), "figure": Path("costs.svg")}, "can't be read"),
        ({"read": Path("list.json"), "figure": Path("costs.svg")}, "holds no figures"),
        ({"read": Path("empty.json"), "figure": Path("costs.svg")}, "holds no measurements"),
    ],
)
def test_a_figure_that_can_not_be_drawn_is_refused_before_timing(options, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.json").write_text("[]")
    Path("empty.json").write_text("{}")
    monkeypatch.setattr(benchmark, "run", lambda *a: pytest.fail("timed"))
    with pytest.raises(ValueError, match=match):
        Benchmark(BenchmarkConfig(), **options).run()
    assert not Path("costs.svg").exists()
