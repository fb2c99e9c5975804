"""What only one process may do is refused by each of several at once, with nothing written."""

import pytest

from faults.campaign.ranks.processes import on_ranks

pytestmark = pytest.mark.faults

COMMANDS = [
    ("compare", "--rules", "fa", "kp", "--seeds", 1, "--epochs", 1, "--network", "64-20-10", "--folder", "run"),
    ("compare", "--replicas", "on", "--folder", "run"),
    ("reproduce", "lillicrap2016/fig2a", "--folder", "run"),
    ("benchmark", "--networks", "784-50-20-10", "--json", "run"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_refused(tmp_path, figure, words):
    for child in on_ranks(tmp_path, *words):
        assert child.wait().code == 2, child.errors
        assert "works in one process, and 2 were started together" in child.errors
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()
    figure(f"{words[0]} by 2 processes", "refused by both")
