"""All derivations of the paper, tested once in short."""

from __future__ import annotations

import pytest

from apical.papers import find
from apical.papers.experiment import Task


@pytest.fixture(scope="package")
def theory(tmp_path_factory):
    one = find("akrout2019/theory")
    lengths = {"updates": 60, "mirrors": 100}
    return {name: one.run(Task(name, (0, 1), 1.0, lengths, tmp_path_factory.mktemp("task"))) for name in one.conditions}
