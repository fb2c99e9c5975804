"""Examples drawn step by step, errors of several networks, and courses that were stopped."""

import pytest
import torch

import apical
from apical.papers import Task
from apical.papers.lillicrap2016.fig2 import FIG2A, FIG2B
from apical.papers.lillicrap2016.fig5 import FIG5C
from apical.papers.lillicrap2016.online import Pairs, Students, normal, normalized_squared_error
from papers.lillicrap2016.students import SEEDS


def test_pairs_do_not_depend_on_who_else_is_there_or_where_one_starts():
    alone, together = (Pairs(seeds, 5, lambda x: x[:, :2] * 3, normal) for seeds in ((8,), (3, 8)))
    for step in (0, 249, 250, 1000):
        for mine, its in zip(alone(step), together(step), strict=True):
            assert mine.shape[:2] == (1, 1)
            torch.testing.assert_close(mine[0], its[1], rtol=0, atol=0)
    x, y = Pairs((8,), 5, lambda x: x[:, :2] * 3)(600)
    torch.testing.assert_close(x, together(600)[0][1:], rtol=0, atol=0)
    torch.testing.assert_close(y, x[..., :2] * 3)
    held, _ = alone.held_out(2000)
    assert abs(float(held.std()) - 1) < 0.05
    assert not any(bool((held == alone(step)[0][0]).all(1).any()) for step in range(300))


def test_normalized_errors_are_those_of_single_networks():
    outputs, y = torch.randn(3, 40, 4), torch.randn(40, 4)
    for place in range(3):
        assert normalized_squared_error(outputs, y)[place] == pytest.approx(
            apical.measures.normalized_squared_error(outputs[place], y)
        )


@pytest.mark.parametrize(
    ("one", "condition", "lengths"),
    [
        (FIG2A, "reinforce", {"examples": 100}),
        (FIG2B, "fa", {"examples": 100}),
        (FIG5C, "three phases", {"phase 1": 30, "phase 2": 40, "phase 3": 30}),
    ],
    ids=["2a", "2b", "5c"],
)
def test_a_course_that_was_stopped_ends_as_one_that_was_not(one, condition, lengths, tmp_path, monkeypatch):
    monkeypatch.setattr("apical.papers.experiment.CHECKPOINT_SECONDS", -1.0)
    whole = one.run(Task(condition, SEEDS, 1.0, lengths, tmp_path / "whole"))
    learn, calls = Students.learn, []

    def stopping(students, x, y):
        calls.append(1)
        if len(calls) == 90:
            raise KeyboardInterrupt
        learn(students, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Students, "learn", stopping)
        with pytest.raises(KeyboardInterrupt):
            one.run(Task(condition, SEEDS, 1.0, lengths, tmp_path / "stopped"))
    again = one.run(Task(condition, SEEDS, 1.0, lengths, tmp_path / "stopped"))
    assert whole.curves == again.curves
