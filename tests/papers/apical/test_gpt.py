"""The language experiment: every rule at a small size, resumption, Kolen-Pollack's law under AdamW, and claims that can fail."""

import dataclasses
import math

import pytest
import torch

from apical.data import DataError
from apical.papers import find
from apical.papers.apical.language import LanguageTraining, Recipe
from apical.papers.experiment import Task
from apical.papers.record import Curve, Record
from apical.papers.reproduce import reproduce
from apical.report.papers import paper
from apical.rules import rule
from data.text.books import written
from processes import BoomError

WHOLE = find("apical/gpt")
SMALL = dataclasses.replace(WHOLE, width=8, depth=1, window=16, recipe=Recipe(steps=300, batch=4))


@pytest.fixture
def books(tmp_path):
    return f"text:{written(tmp_path / 'books', 6, 300)}"


@pytest.mark.parametrize("precision", WHOLE.precisions)
def test_it_runs_at_a_hundredth_of_its_length(books, tmp_path, precision):
    outcome = reproduce(SMALL, tmp_path / "run", scale=0.01, data=books, precision=precision)
    assert outcome["lengths"] == {"steps": 3}
    assert outcome["data"].startswith("text:books (")
    assert len(outcome["shows"]["panels"][0]["lines"]) == len(WHOLE.conditions)
    rows = {row["label"]: row["mean"] for row in outcome["shows"]["rows"]}
    assert rows["bp: test loss, nats per byte"] == pytest.approx(math.log(256), rel=0.03)
    assert rows["bp: test loss, bits per byte"] == pytest.approx(8, rel=0.03)
    page = paper.write(tmp_path / "run").read_text()
    assert "0.01 of the full length" in page
    assert str(tmp_path) not in page


def task_of(data, folder, condition="kp", steps=20, **options):
    return Task(condition, (0,), 1.0, {"steps": steps}, folder, data, **options)


def test_a_run_that_stops_and_resumes_ends_bit_identical(books, tmp_path, monkeypatch):
    data = SMALL.load(books)
    whole = SMALL.run(task_of(data, tmp_path / "whole", steps=130))
    monkeypatch.setattr(Task, "save_due", True)

    def stop(done, steps, note):
        if done == 128:
            raise BoomError

    with pytest.raises(BoomError):
        SMALL.run(task_of(data, tmp_path / "cut", steps=130, watcher=stop))
    # The last checkpoint is of step 64, amid an epoch.
    record = SMALL.run(task_of(data, tmp_path / "cut", steps=130))
    assert record.asdict() == whole.asdict()


def apart(learner):
    """W - B of every synapse."""
    pairs = {name: (one.weight, one.feedback) for name, one in learner.synapses.items() if one.feedback is not None}
    return {name: (weight - feedback).detach() for name, (weight, feedback) in pairs.items()}


def test_kolen_pollacks_law_is_exact_under_adamw(books, tmp_path):
    task = task_of(SMALL.load(books), tmp_path)
    training = LanguageTraining("gpt-8x1", rule("kp"), Recipe(batch=4, rate=0.02, decay=0.5), task, 20)
    training.model.double()
    training.outputs = training.model  # Without rounding to single precision.
    before = apart(training.learner)
    weights = {name: one.weight.detach().clone() for name, one in training.learner.synapses.items()}
    shrunk = 1.0
    for step in range(20):
        training.learn(step)
        shrunk *= 1 - 0.5 * training.optimizer.param_groups[0]["lr"]
    assert shrunk < 0.95
    for name, after in apart(training.learner).items():
        assert (training.learner.synapses[name].weight - weights[name]).abs().max() > 0.01
        torch.testing.assert_close(after, shrunk * before[name], rtol=0, atol=1e-9)


def records(**losses):
    curve = {"validation loss": Curve([0, 1], [[5.5, 2.0]])}
    numbers = {
        name: {"test loss": [loss], "validation loss": [loss], "test error": [50.0]} for name, loss in losses.items()
    }
    return {name: Record(curves=curve, numbers=own, seeds=[0]) for name, own in numbers.items()}


def test_claims_are_ours_and_can_fail():
    good = WHOLE.outcome(records(bp=2.0, kp=2.03, dfa=2.9, shallow=3.5)).claims
    bad = WHOLE.outcome(records(bp=2.0, kp=2.05, dfa=2.95, shallow=2.9)).claims
    assert [one.holds for one in good] == [True, True]
    assert [one.holds for one in bad] == [False, False]
    assert {one.kind for one in good} == {"ours"}


def test_other_data_are_refused():
    with pytest.raises(DataError, match=r"apical/gpt is about text; give 'text', or 'text:PATH' of .*, got 'digits'"):
        WHOLE.load("digits")
