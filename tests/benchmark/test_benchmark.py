"""The benchmark as a whole, and the faults of its configuration."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

import apical
from apical.benchmark import BenchmarkConfig, Missing, benchmark, run, timing, training_step
from apical.benchmark.steps import PLAIN
from apical.benchmark.subjects import LARGE, SUBJECTS, next_tokens
from apical.losses import cross_entropy
from apical.networks import mlp


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
        assert options == {
            "optimizer": "SGD:momentum=0.9",
            "criterion": cross_entropy,
            "local": False,
            "setting": None,
            "mixed": False,
            "mode": "eager",
        }
        for key, value in reference[1].items():
            assert torch.equal(state[key], value), key


def test_products_of_a_step_are_counted_and_the_share_of_the_floor_follows(tiny, monkeypatch):
    model = mlp([6, 5, 10])
    x, y = torch.randn(4, 6), torch.randint(10, (4,))
    # Forward and update of both layers, the signal of the second: 2 n i o each.
    expected = 2 * 4 * (2 * 6 * 5 + 3 * 5 * 10)
    assert timing.products(training_step(model, None, x, y, optimizer="SGD")) == expected
    assert timing.matrix_rate() > 1e8
    monkeypatch.setattr(benchmark, "matrix_rate", lambda device, dtype: 1e6)
    for m in run(BenchmarkConfig(networks=("tiny",), rules=("fa",), seconds=0.01)):
        assert m.share == pytest.approx(1000 * 2 * 4 * (2 * 30 + 3 * 20 + 3 * 40) / 1e6 / m.timing.milliseconds)


def test_mixed_precision_is_a_contender_of_its_own(tiny):
    found = run(BenchmarkConfig(networks=("small",), rules=("fa", "dfa"), mixed=True, seconds=0.01))
    assert [m.rule for m in found] == [PLAIN, "fa", "dfa", "plain, bfloat16", "fa, bfloat16", "dfa, bfloat16"]
    seen = []
    model = tiny["small"].build()
    model[0].register_forward_hook(lambda module, args, output: seen.append((args[0].stride(1), output.dtype)))
    training_step(model, "fa", torch.randn(3, 2, 6, 6), torch.tensor([0, 1, 2]), optimizer="SGD", mixed=True)()
    assert seen[-1] == (1, torch.bfloat16)


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
        ({"modes": ()}, "at least one"),
        ({"modes": ("compile",)}, "modes: unknown 'compile'; did you mean 'compiled'"),
        ({"precision": "bf16"}, "precision: unknown 'bf16'"),
        ({"precision": "bfloat16", "mixed": True}, "leave out one of mixed and precision"),
        ({"batch": 1}, "batch must be at least 2"),
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


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_take_their_batches_and_their_losses(name):
    subject = LARGE[name]
    with torch.device("meta"):
        model = subject.build()
    x, y = subject.draw(2, "meta")
    assert subject.criterion(model(x), y).shape == (2,)
    assert subject.units(2) == (2048 if name == "gpt-124m" else 2)
    assert subject.unit == {"gpt-124m": "tokens", "3072-8192x3-10": "samples"}.get(name, "images")


def test_losses_of_sequences_are_means_over_positions():
    outputs, tokens = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    expected = F.cross_entropy(outputs.transpose(1, 2), tokens, reduction="none").mean(1)
    torch.testing.assert_close(next_tokens(outputs, tokens), expected)


def test_modes_are_contests_of_their_own_against_plain_in_the_same_mode(tiny, monkeypatch):
    made = []

    def captured(step, *example):
        made.append(("captured", tuple(one.shape for one in example)))
        return step

    monkeypatch.setattr(apical, "captured", captured, raising=False)
    monkeypatch.setattr(torch, "compile", lambda model: made.append("compiled") or model)
    monkeypatch.setattr(benchmark, "peak_memory", lambda make: 1.0)
    config = BenchmarkConfig(
        networks=("tiny",),
        rules=("fa", "dfa", "bp", "usf"),
        modes=("compiled", "captured"),
        seconds=1e-9,
        repeats=2,
        batch=6,
    )
    found = run(config)
    assert [(m.mode, m.rule) for m in found] == [
        (mode, rule) for mode in ("compiled", "captured") for rule in (PLAIN, *config.rules)
    ]
    # Compiled ones are made once, at most three at a time with plain.
    assert made == ["compiled"] * (4 + 2) + [("captured", ((6, 6), (6,)))] * 5 * 2
    monkeypatch.setattr(benchmark, "LARGE", tiny)
    made.clear()
    run(dataclasses.replace(config, modes=("captured",)))
    assert len(made) == 2 * 4 * 2  # Each alone with plain.
    for m in found:
        assert m.batch == 6
        assert m.unit == "samples"
        assert m.throughput == pytest.approx(6000 / m.timing.milliseconds)


def test_a_step_that_is_no_graph_is_not_timed_as_one(tiny, monkeypatch):
    class Captured:
        def __init__(self, step, *example):
            self.step, self.why = step, None

        def __call__(self, *batch):
            self.step(*batch)
            self.why = "a number is read back"

    monkeypatch.setattr(apical, "captured", Captured, raising=False)
    missing: list[Missing] = []
    config = BenchmarkConfig(networks=("tiny",), rules=("fa",), modes=("captured",), seconds=1e-9, repeats=1)
    assert run(config, missing=missing) == []
    assert missing[0].error == "RuntimeError: the step can't be captured: a number is read back"


def test_captured_steps_need_the_function_that_captures(monkeypatch):
    monkeypatch.delattr(apical, "captured", raising=False)
    with pytest.raises(ValueError, match=r"needs apical\.captured"):
        BenchmarkConfig(modes=("captured",))


def test_what_can_not_be_timed_is_told_and_the_rest_is_timed(tiny, monkeypatch):
    def step_of(model, rule, x, y, **options):
        if rule == "dfa":
            raise RuntimeError("out of memory " + 1000 * "!")
        return training_step(model, rule, x, y, **options)

    monkeypatch.setattr(benchmark, "training_step", step_of)
    config = BenchmarkConfig(networks=("tiny",), rules=("dfa", "fa"), seconds=1e-9, repeats=2)
    missing: list[Missing] = []
    assert [m.rule for m in run(config, missing=missing)] == [PLAIN, "fa"]
    assert missing == [Missing("tiny", "eager", "dfa", ("RuntimeError: out of memory " + 1000 * "!")[:500])]
    with pytest.raises(RuntimeError, match="out of memory"):
        run(config)
    # Without the plain step there is nothing to compare with.
    monkeypatch.setattr(benchmark, "training_step", lambda *a, **k: 1 / 0)
    missing.clear()
    assert run(config, missing=missing) == []
    assert missing == [Missing("tiny", "eager", PLAIN, "ZeroDivisionError: division by zero")]


def test_bfloat16_is_a_precision_of_every_contender(tiny, monkeypatch):
    seen = []

    def build():
        model = tiny["small"].build()
        model[0].register_forward_hook(lambda module, args, output: seen.append((module.training, output.dtype)))
        return model

    small = dataclasses.replace(tiny["small"], build=build)
    monkeypatch.setattr(benchmark, "SUBJECTS", {"small": small})
    config = BenchmarkConfig(networks=("small",), rules=("fa",), precision="bfloat16", seconds=1e-9, repeats=1)
    assert [m.rule for m in run(config)] == [PLAIN, "fa"]
    # Only the dry run of attach, in eval mode, is in float32.
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
