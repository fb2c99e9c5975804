"""The phases of figure 5c."""

from itertools import pairwise

import pytest
import torch

from apical.papers import Task
from apical.papers.lillicrap2016.fig5 import FIG5C
from apical.papers.lillicrap2016.online import Students


@pytest.mark.parametrize("condition", FIG5C.conditions)
def test_in_every_phase_one_layer_stands_still(condition, tmp_path, monkeypatch):
    seen, learn = [], Students.learn

    def looked_at(students, x, y):
        learn(students, x, y)
        seen.append((students.weight("0").clone(), students.weight("2").clone()))

    monkeypatch.setattr(Students, "learn", looked_at)
    task = Task(condition, (1,), 1.0, {"phase 1": 3, "phase 2": 4, "phase 3": 5}, tmp_path)
    record = FIG5C.run(task)
    assert record.arrays["bounds"] == [0, 3, 7, 12]
    phases = [2] * 4 + [3] * 5 if condition == "without phase 1" else [1] * 3 + [2] * 4 + [3] * 5
    assert len(seen) == len(phases)
    for (before, after), phase in zip(pairwise(seen), phases[1:], strict=True):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([False, True] if phase == 2 else [True, False])
