"""Short runs of the paper's experiments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from apical.papers import find
from apical.papers.experiment import Task
from apical.papers.record import Record


@pytest.fixture
def run(tmp_path):
    """run(experiment, condition, lengths, seeds, fields that differ) -> record."""

    def short(name: str, condition: str, lengths: dict[str, int], seeds=(0, 1), **changes) -> Record:
        one = replace(find(f"amit2019/{name}"), **changes)
        return one.run(Task(condition, seeds, 1.0, lengths, tmp_path))

    return short
