"""Timing, peak memory and products of steps."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from apical.benchmark import training_step
from apical.benchmark.timing import Timing, contest, peak_memory
from apical.networks import mlp


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


class Gpu:
    """A GPU's memory, and when it was waited for."""

    def __init__(self) -> None:
        self.allocated, self.peak, self.calls = 0, 0, []

    def take(self, mib: int) -> None:
        self.allocated += mib * 2**20
        self.peak = max(self.peak, self.allocated)

    def synchronize(self) -> None:
        self.calls.append("wait")

    def memory_allocated(self) -> int:
        return self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def empty_cache(self) -> None:
        self.calls.append("empty")


@pytest.mark.parametrize("standing", [False, True])
def test_on_a_gpu_memory_is_that_of_the_steps_that_warm_up_and_turns_are_waited_for(clock, monkeypatch, standing):
    gpu = Gpu()
    for name in ("synchronize", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))

    def maker(weights, activities):
        def make():
            gpu.take(weights)
            steps = []

            def step():
                steps.append(1)
                gpu.calls.append("step")
                clock.now += 1.0
                # The first one chooses kernels. One that is captured takes its memory at the fifth.
                here = 900 if steps == [1] and not standing else activities * (not standing or len(steps) == 5)
                gpu.take(here)
                gpu.take(-here)

            return step

        return make

    def broken():
        gpu.take(10**6)
        gpu.take(-(10**6))
        raise torch.OutOfMemoryError("CUDA out of memory")

    makers = {"plain": maker(10, 50), "broken": broken, "other": maker(20, 70)}
    memory, failed = {}, {}
    found = contest(makers, seconds=1e-9, device="cuda", failed=failed, memory=memory, standing=standing)
    assert failed == {"broken": "OutOfMemoryError: CUDA out of memory"}
    assert list(found) == ["plain", "other"]
    # Another contender's weights are there, and count as its own alone.
    assert memory == {"plain": 60.0, "other": 90.0}
    warm = 8 if standing else 4
    assert gpu.calls.count("step") == 2 * (warm + 3)
    assert gpu.calls.count("empty") == 1
    assert gpu.calls[-6:] == ["wait", "step", "wait"] * 2


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


class Noted(nn.Linear):
    """Keeps in its state what is no tensor."""

    def get_extra_state(self):
        return {"note": "one"}

    def set_extra_state(self, state):
        pass


def test_a_model_whose_state_is_not_all_tensors_is_timed():
    def make():
        def step():
            pass

        step.model = Noted(2, 2)
        return step

    assert contest({"plain": make}, seconds=0.01)["plain"].ratio == 1


def test_steps_whose_weights_do_not_stay_finite_have_no_timing():
    def make(name: str):
        model = nn.Linear(2, 2)

        def step():
            if name == "wild":
                model.weight.data.fill_(torch.inf)

        step.model = model
        return step

    makers = {name: partial(make, name) for name in ("plain", "tame", "wild")}
    failed = {}
    found = contest(makers, seconds=0.01, repeats=2, failed=failed)
    assert found.keys() == {"plain", "tame"}
    assert "no longer finite" in failed["wild"]
    with pytest.raises(RuntimeError, match=r"wild: after .* no longer finite"):
        contest(makers, seconds=0.01)
