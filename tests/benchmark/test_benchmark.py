"""The benchmark as a whole, and the faults of its configuration."""

from __future__ import annotations

import pytest
import torch

from apical.benchmark import BenchmarkConfig, benchmark, run, timing, training_step
from apical.benchmark.steps import PLAIN
from apical.benchmark.subjects import SUBJECTS
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
        assert options == {"optimizer": "SGD:momentum=0.9", "local": False, "setting": None, "mixed": False}
        for key, value in reference[1].items():
            assert torch.equal(state[key], value), key


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
