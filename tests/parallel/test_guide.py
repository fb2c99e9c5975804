"""The guide's script learns in two processes, as torchrun starts them."""

from __future__ import annotations

import re
from pathlib import Path

from processes import Forked, as_torchrun_starts, free_port

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "layer-parallel.md"


def script(code: str, rank: int, port: int) -> None:
    as_torchrun_starts(rank, port)
    exec(compile(code, str(GUIDE), "exec"), {"__name__": "__main__"})


def test_the_script_learns():
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    port = free_port()
    ranks = [Forked(script, code, rank, port) for rank in range(2)]
    told, errors = zip(*(rank.communicate(timeout=120) for rank in ranks), strict=True)
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    loss, accuracy = map(float, re.fullmatch(r"loss ([\d.]+), accuracy ([\d.]+), 6 parameters\n", told[0]).groups())
    assert loss < 1.5
    assert accuracy > 0.7
    assert not told[1]
